"""`profile`, the function of users."""

from __future__ import annotations

from gradflow.profiling.profiles import Profile


def profile() -> Profile:
    """Measure what this thread does inside a `with`: time on host and device, launches and bytes of each operation.

    The object that it gives has, after the `with`, the attributes `rows` and `total` (see `gradflow.profiling.Row`),
    the text of `print` or `table()`, and `save(path)` for a trace; inside the `with`, `region(name)` names a part of
    the program.

    Steps run as they do without a profile. A replay of a captured step is one operation, with the functions of the
    backend that it calls. Other threads are not measured. An asynchronous device is waited for at the beginning and at
    the end, never between. Each call is kept, about 300 bytes for one: profile some steps, not a whole training.

    Raises RuntimeError if this thread is profiled already, or records a captured step.

    >>> import gradflow as gf
    >>> model = gf.nn.MLP([4, 8, 3])
    >>> optimizer = gf.optim.SGD(model.parameters(), lr=0.1)
    >>> x, y = gf.ones((16, 4)), gf.zeros(16, dtype="int64")
    >>> def step():
    ...     optimizer.zero_grad()
    ...     gf.cross_entropy(model(x), y).backward()
    ...     optimizer.step()
    >>> step()
    >>> with gf.profile() as p:
    ...     step()
    >>> for row in p.rows:
    ...     print(row.name, row.phase, row.calls, row.launches)
    SGD.zero_grad update 1 0
    perceptron forward 1 2
    cross_entropy forward 1 1
    cross_entropy backward 1 1
    perceptron backward 1 2
    SGD.step update 1 1
    """
    return Profile()
