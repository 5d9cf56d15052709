"""Captured steps: a training step is recorded twice and then replayed, without most of its Python (`gradflow.capture`).

**What is recorded.** A step changes arrays only by calls of its backend; the rest of its time goes to the Python
between them: checks, graph nodes, the order of the backward pass. A `StepRecorder` runs the step once while it
replaces the functions of the backend by functions that also list their calls. Each argument is a plain value, an input
of the step, the result of an earlier call (a `Ref`), or a `Constant`: an object from before the step, such as the array
of a parameter. Functions that read or change Python objects, such as `Optimizer.step` or the one that adds to a leaf's
gradient, are decorated with `opaque_call`: each is recorded as one call, and a replay calls it again. This keeps
learning rates and optimizer state current. `compile_replay` turns the list into the source of one Python function.

**Why twice.** The plain values in a recording are those of one call. A step that counts, or whose values come from the
host, makes other calls next time. A `Program` is made only if two recordings in a row have the same calls with the same
values and constants (`difference`); otherwise their first difference becomes the status.

**What forbids a replay.** Some actions cannot be recorded as calls on arrays: reading a value or a gradient, random
numbers, hooks, changing a tensor in place. The recorder sees them in the backend's functions, or `forbid_replay`
reports them, and it keeps the first as the reason. A `Plan` then decides when to record again.

**How a change is noticed.** Which calls a step makes also depends on Python objects: on the attributes of modules,
hooks, `requires_grad`, and where parameters and gradients are stored. While a step is recorded, its reads of such
objects are reported to the recorder, which takes a `Snapshot` of their versions at the end; `invalidate` advances the
version of an object that changes. `Guards` compares the versions before each replay, the parameters in the groups of
optimizers, and where each gradient is (`gradient_state`). Shapes, dtypes, the device and the grad mode select the plan.
Other Python objects are not watched; `check` finds changes of these (`run_both`).

**Memory.** A program deletes each result after its last use, and returns copies. It keeps its constants alive until it
is dropped: when a guard fails, a check finds a difference, or the captured function dies.

**Threads and forks.** All threads share the backend whose functions a recording replaces. So only one thread at a time
records, with `recorder.recording_lock`; other threads run their steps normally, and their calls are passed through. A
change by another thread of what the step reads forbids the replay. In a forked child, a recording by another thread
is undone, since that thread does not exist there.

Read `step` first (what a call does), then `recorder`, `program`, `guards` and `plan`.
"""

from gradflow.replay.step import Captured, capture

__all__ = ["Captured", "capture"]
