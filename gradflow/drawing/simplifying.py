"""Steps that an operation adds by itself are drawn as part of it: `matmul` gives a vector an axis, and removes it."""

from __future__ import annotations

from collections import Counter

from gradflow.drawing.recorder import Applied, Recorder


def merge_vector_products(recorder: Recorder) -> None:
    """Replace each matmul of a vector, and the reshapes around it, by one step."""
    uses = Counter(i for step in recorder.steps for i in step.inputs if i is not None)
    by_output = {step.output: s for s, step in enumerate(recorder.steps)}
    users = {i: s for s, step in enumerate(recorder.steps) for i in step.inputs if i is not None}
    hidden: set[int] = set()
    for s, step in enumerate(recorder.steps):
        if step.op.name != "matmul":
            continue
        after = users.get(step.output)
        if after is None or not _is_added(recorder, after, step, uses[step.output]):
            continue
        hidden.add(after)
        for argument, index in enumerate(step.inputs):
            assert index is not None
            before = by_output.get(index)
            if before is not None and _is_added(recorder, before, step, uses[index]):
                hidden.add(before)
                _skip_before(recorder, s, argument, before)
        _skip_after(recorder, s, after)
    if hidden:
        _remove(recorder, hidden)


def _is_added(recorder: Recorder, s: int, matmul: Applied, uses: int) -> bool:
    """Whether step `s`, next to a matmul, only adds an axis to its vector or removes one, in the same line."""
    step = recorder.steps[s]
    inner = recorder.values[step.output if step.output in matmul.inputs else matmul.output]
    if step.op.name != "reshape" or uses != 1 or inner.name is not None or step.place != matmul.place:
        return False
    (before,) = step.inputs
    assert before is not None
    return len(recorder.values[step.output].shape) != len(recorder.values[before].shape)


def _skip_before(recorder: Recorder, s: int, argument: int, before: int) -> None:
    step, vector = recorder.steps[s], recorder.steps[before].inputs[0]
    step.inputs = (*step.inputs[:argument], vector, *step.inputs[argument + 1 :])
    for each in recorder.passes:
        received = each.received.pop((before, 0), None)
        if received is not None:
            each.received[s, argument] = received


def _skip_after(recorder: Recorder, s: int, after: int) -> None:
    step = recorder.steps[s]
    step.output = recorder.steps[after].output
    shape = recorder.values[step.output].shape
    for argument, index in enumerate(step.inputs):
        assert index is not None
        found = step.local[argument] if step.local else None
        if found is not None and found[1] is not None:
            inner = recorder.values[index].shape
            found[1].shape = (*shape, *inner) if found[0] == "full" else inner
    for each in recorder.passes:
        each.received.pop((after, 0), None)


def _remove(recorder: Recorder, hidden: set[int]) -> None:
    """Remove steps, with the values that nothing else refers to, and number the others anew."""
    kept = [s for s in range(len(recorder.steps)) if s not in hidden]
    step_at = {old: new for new, old in enumerate(kept)}
    steps = [recorder.steps[s] for s in kept]
    gone = {recorder.steps[s].output for s in hidden} | {recorder.steps[s].inputs[0] for s in hidden}
    gone -= {step.output for step in steps} | {i for step in steps for i in step.inputs}
    values = [i for i in range(len(recorder.values)) if i not in gone]
    value_at = {old: new for new, old in enumerate(values)}
    for step in steps:
        step.inputs = tuple([None if i is None else value_at[i] for i in step.inputs])
        step.output = value_at[step.output]
        step.recorded_by = None if step.recorded_by is None else step_at.get(step.recorded_by)
    recorder.steps, recorder.values = steps, [recorder.values[i] for i in values]
    for s, step in enumerate(steps):
        recorder.values[step.output].step = s
    for each in recorder.passes:
        each.steps = [step_at[s] for s in each.steps if s in step_at]
        each.gradients = {value_at[i]: x for i, x in each.gradients.items() if i in value_at}
        each.received = {(step_at[s], a): x for (s, a), x in each.received.items() if s in step_at}
    for seen in recorder.values:
        if seen.gradient_of is not None:
            index = value_at.get(seen.gradient_of[1])
            seen.gradient_of = None if index is None else (seen.gradient_of[0], index)
