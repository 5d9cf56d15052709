"""Captured steps: a training step is recorded, then replayed without running most of its Python (`gradflow.capture`).

**What is recorded.** Everything a step does to arrays is a backend call; the rest of its time goes to the Python
between the calls: checks, graph nodes, the order of the backward pass. A `StepRecorder` runs the step once with the
backend's functions wrapped to log each call. Each argument is a plain value, an input of the step, the result of an
earlier call (a `Ref`), or a `Constant`: an object from before the step, such as the array of a parameter. Functions
that read or change Python objects, such as `Optimizer.step` or the one that adds to a leaf's gradient, are decorated
with `opaque_call`: each is recorded as one call, and a replay calls it again. This keeps learning rates and optimizer
state current. `compile_replay` turns the calls into the source of one Python function.

**Why twice.** The plain values in a recording are those of one call. A step that uses a counter or values from the host
makes different calls each time. A `Program` is built only if two recordings make the same calls with the same values
and constants; otherwise `status` reports their first difference (`difference`). The step must not run normally between
the two: what every second call does would look like what all calls do.

**What forbids a replay.** Some actions cannot be recorded as calls on arrays: reading a value or a gradient, random
numbers, hooks, changing a tensor in place, work on a second device. The recorder sees them in the functions of all
backends, or `forbid_replay` reports them; it records the first one as the reason. A `Plan` then decides when to record
again.

**How a change is noticed.** Which calls a step makes also depends on Python objects: on the attributes of modules,
hooks, `requires_grad`, and where parameters and gradients are stored. While a step is recorded, its reads of such
objects are reported to the recorder, which takes a `Snapshot` of their versions at the end; `invalidate` advances the
version of an object that changes. Before each replay, `Guards` compares the versions and the parameters in the groups
of optimizers, and `Program.is_valid` compares where each gradient is (`gradient_state`): a plan has a program for each
list of gradient states. All of this is compared in full only after a change: numbers count the changes of any object in
a snapshot and of the place of any gradient (`autograd.leaf.places`), and an optimizer notices edits of its groups.
Shapes, dtypes, the device and the grad mode select the plan. Other Python objects are not tracked; use `check` to
detect changes to them (`run_both`).

**Graphs.** A `Program` asks its backend for what replays its calls (`Backend.graph`). On CUDA this is one graph of
the calls of `Replayable.parts`; the fast backend of the CPU traces the calls (`tracing`) and makes native programs of
them. `host_state` applies what a step changes on the host.

**Memory.** A program deletes each result after its last use, and returns copies. It keeps its constants alive until it
is dropped: when a guard fails, a check finds a difference, or the captured function dies. A recording needs much more
memory than a normal call: it keeps all results alive until the call ends, because it identifies arrays by their ids.

**Threads and forks.** All threads share the backends whose functions a recording wraps. So only one thread at a time
records, with `interception.recording_lock`; other threads run their steps normally, and the wrappers pass their calls
through. If another thread changes something the step reads, the recording is rejected. A replay does not claim the
buffers of gradients, as a backward pass does: during a replay, no other thread may compute gradients of the same
leaves. In a forked child, a recording by another thread is undone, since that thread does not exist there.

**Several steps.** With the batches of an epoch (`batches`), a device with graphs does several steps at once: `Several`
is made of a program that ends with the gradients where it begins, and gathers the batch of each step from the data.

Read `step` first (what a call does), then `recorder`, `program`, `guards`, `plan` and `batches`.
"""

from gradflow.replay.batches import CapturedRun
from gradflow.replay.step import Captured, capture

__all__ = ["Captured", "CapturedRun", "capture"]
