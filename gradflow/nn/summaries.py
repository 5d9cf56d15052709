"""`summary`: the layers of a model in numbers, and the memory that training it takes."""

from __future__ import annotations

import math
import reprlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from gradflow.backend.registry import current_device
from gradflow.dtypes import DType, as_dtype, default_dtype
from gradflow.nn.constructors import positive
from gradflow.nn.measuring import calls, kept, sample
from gradflow.nn.module import Module
from gradflow.nn.parameter import Parameter
from gradflow.ops.creation import zeros
from gradflow.shapes import is_sequence
from gradflow.tensor import Tensor
from gradflow.text import printable

_MEASURED = (8, 16, 24)
"""The sizes of the batches that are measured. A count is a polynomial of the batch size, of degree 2 at most."""
_WIDEST = 80  # characters of a line


@dataclass(frozen=True)
class LayerSummary:
    """A layer in numbers.

    name: dotted, "" for the model itself. type: the name of its class.
    outputs: the shapes of the tensors that it returns for the batch; those of its last call, if it is called more than
        once; none if it is not called.
    calls: how often the model calls it.
    parameters, trainable: how many numbers its parameters hold, and how many of these require grad; parameters that a
        layer before it has too count there.
    bytes: of its parameters. multiply_adds: in the forward pass of one sample, of all its calls.

    >>> import gradflow as gf
    >>> layer = gf.nn.summary(gf.nn.MLP([784, 512, 10]), 784).layers[0]
    >>> layer.type, layer.outputs, layer.parameters == 784 * 512 + 512, layer.multiply_adds == 784 * 512
    ('Linear', ((1, 512),), True, True)
    """

    name: str
    type: str
    outputs: tuple[tuple[int, ...], ...]
    calls: int
    parameters: int
    trainable: int
    bytes: int
    multiply_adds: int


@dataclass(frozen=True)
class StepMemory:
    """The bytes that a training step keeps on one device: until its backward pass, and from step to step.

    gradients: of the parameters that require grad; with an optimizer, of all that it has, since it keeps memory for the
        gradients of the frozen ones too.
    activations: what the forward pass of the batch saves for the backward pass, the batch included where it is saved.

    >>> import gradflow as gf
    >>> memory = gf.nn.summary(gf.nn.Linear(100, 10), 100, batch_size=32, optimizer=gf.optim.Adam).memory["cpu"]
    >>> memory.parameters, memory.gradients, memory.optimizer == 2 * memory.parameters
    (4040, 4040, True)
    """

    parameters: int = 0
    buffers: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        """The sum."""
        return self.parameters + self.buffers + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True, repr=False)
class Summary:
    """A model in numbers; `str` and `repr` give a table of 80 columns, or more where it must.

    type: the name of its class. inputs: the shape and dtype of each input, for the batch. batch_size: of the batch.
    layers: the modules that have parameters of their own, multiply matrices, or have no submodules, in the order in
        which they are registered.
    memory: what a training step keeps, by device. batch_multiply_adds: in the forward pass of the batch.
    optimizer: the name of the optimizer's class, or None.
    parameters, trainable, bytes, multiply_adds: sums over the layers.

    >>> import gradflow as gf
    >>> small, large = (gf.nn.summary(gf.nn.MLP([784, width, 10]), 784) for width in (64, 128))
    >>> small.parameters, large.parameters, round(large.multiply_adds / small.multiply_adds, 2)
    (50890, 101770, 2.0)
    """

    type: str
    inputs: tuple[tuple[tuple[int, ...], str], ...]
    batch_size: int
    layers: tuple[LayerSummary, ...]
    memory: dict[str, StepMemory]
    batch_multiply_adds: int
    optimizer: str | None = None
    parameters: int = field(init=False)
    trainable: int = field(init=False)
    bytes: int = field(init=False)
    multiply_adds: int = field(init=False)

    def __post_init__(self) -> None:
        for name in ("parameters", "trainable", "bytes", "multiply_adds"):
            object.__setattr__(self, name, sum(getattr(layer, name) for layer in self.layers))

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        given = " and ".join(f"{shape}, {dtype}" for shape, dtype in self.inputs)
        rows = [("layer", "type", "output", "parameters", "bytes", "multiply-adds")]
        for layer in self.layers:
            outputs = " ".join(map(str, layer.outputs)) if layer.calls else "not called"
            numbers = [f"{n:,}" if n else "-" for n in (layer.parameters, layer.multiply_adds)]
            name = printable(layer.name) or layer.type
            rows.append((name, layer.type, outputs, numbers[0], size(layer.bytes) if layer.bytes else "-", numbers[1]))
        rows.append(("total", "", "", f"{self.parameters:,}", size(self.bytes), f"{self.multiply_adds:,}"))
        parts = {
            "parameters": "parameters",
            "buffers": "buffers",
            "gradients": "gradients",
            "optimizer": f"state of {self.optimizer}" if self.optimizer else "state of an optimizer (none given)",
            "activations": f"saved activations (batch of {self.batch_size})",
            "total": "total without temporary arrays",
        }
        steps = self.memory.values()
        memory = [("memory of a training step", *self.memory)]
        for part, label in parts.items():
            if part != "buffers" or any(step.buffers for step in steps):
                memory.append((label, *(size(getattr(step, part)) for step in steps)))
        frozen = self.parameters - self.trainable
        lines = [
            f"{self.type} on {given}",
            "",
            *_table(rows, 3),
            "",
            f"multiply-adds: of the forward pass of one sample; {self.batch_multiply_adds:,} for the batch",
            f"parameters: {self.trainable:,} are trained, {frozen:,} are frozen",
            "",
            *_table(memory, 1),
        ]
        return "\n".join(lines)


def summary(
    model: Module,
    input_shape: int | Sequence[Any],
    batch_size: int = 1,
    *,
    dtype: Any = None,
    optimizer: Any = None,
) -> Summary:
    """Return a model in numbers: its layers, their parameters and multiply-adds, and the memory of a training step.

    input_shape: the shape of one sample, without the axis of the batch, which comes first: (784,) or 784. For a model
        of several inputs, a sequence of shapes: [(784,), (10,)].
    batch_size: the samples of a training step (default 1).
    dtype: of the inputs, or one for each (default, that of the parameters).
    optimizer: an optimizer, or what makes one from parameters, such as `gradflow.optim.Adam`; it decides how much state
        there is (default, none).

    The model runs in training mode on three small batches of ones (zeros for integers) where its parameters are, as a
    copy: the model, its buffers and random generators stay as they were. From these, counts are continued to the batch:
    they may be constant, and grow with the batch and with its square. Only products of matrices count as multiply-adds
    (`linear`, `matmul`). Memory is what is kept from step to step, and from the forward to the backward pass: the
    elements of these arrays, without the padding with which an optimizer aligns parameters (less than 2 kB each). The
    peak is higher, by gradients of activations and the temporary arrays of kernels. Forward hooks are not called.

    Raises TypeError for anything but a module, and for inputs of a dtype that it does not take; ValueError for inputs
    of a shape that it does not take, naming the layer.

    >>> from gradflow import nn, optim
    >>> model = nn.summary(nn.MLP([784, 512, 10]), 784, batch_size=64, optimizer=optim.Adam)
    >>> model.parameters, model.multiply_adds
    (407050, 406528)
    >>> print(model)
    MLP on (64, 784), float32
    <BLANKLINE>
    layer          type     output      parameters     bytes   multiply-adds
    0              Linear   (64, 512)      401,920   1.61 MB         401,408
    1              Linear   (64, 10)         5,130   20.5 kB           5,120
    total                                  407,050   1.63 MB         406,528
    <BLANKLINE>
    multiply-adds: of the forward pass of one sample; 26,017,792 for the batch
    parameters: 407,050 are trained, 0 are frozen
    <BLANKLINE>
    memory of a training step             cpu
    parameters                        1.63 MB
    gradients                         1.63 MB
    state of Adam                     3.26 MB
    saved activations (batch of 64)    332 kB
    total without temporary arrays    6.84 MB
    """
    if not isinstance(model, Module):
        made = isinstance(model, type) and issubclass(model, Module)
        got = f"the class {model.__name__}: create a module, {model.__name__}(...)" if made else type(model).__name__
        raise TypeError(f"summary takes a module; got {got}")
    batch_size = positive("batch_size", batch_size)
    shapes = _shapes(input_shape)
    first = next((p for p in model.parameters() if p.dtype.is_floating), None)
    dtypes = _dtypes(dtype, len(shapes), default_dtype.get() if first is None else first.dtype)
    device = current_device() if first is None else first.device

    def inputs(batch: int) -> list[Tensor]:
        return [sample(shape, kind, device, batch) for shape, kind in zip(shapes, dtypes, strict=True)]

    measured = [calls(model, inputs(batch)) for batch in _MEASURED]
    layers, counted = [], set[int]()
    for name, module in model.named_modules():
        own = [p for p in module._parameters.values() if p is not None]
        of = [found[name] for found in measured]
        if own or of[0].multiply_adds or not any(True for _ in module.children()):
            new = [p for p in own if id(p) not in counted]
            counted |= {id(p) for p in own}
            outputs = zip(*(each.outputs for each in of), strict=False)
            layers.append(
                LayerSummary(
                    name,
                    type(module).__name__,
                    tuple(tuple(map(_at(batch_size), *shapes)) for shapes in outputs),
                    of[0].count,
                    sum(p.size for p in new),
                    sum(p.size for p in new if p.requires_grad),
                    sum(map(_bytes, new)),
                    _at(1)(*(each.multiply_adds for each in of)),
                )
            )
    products = _at(batch_size)(*(sum(each.multiply_adds for each in found.values()) for found in measured))
    memory, kind = _lasting(model, optimizer)
    saved = [kept(model, inputs(batch)) for batch in _MEASURED]
    for place in saved[-1]:
        memory[place, "activations"] = _at(batch_size)(*(each.get(place, 0) for each in saved))
    places = dict.fromkeys(place for place, _ in memory)
    steps = {here: StepMemory(**{part: n for (place, part), n in memory.items() if place == here}) for here in places}
    given = tuple(((batch_size, *shape), dtype.name) for shape, dtype in zip(shapes, dtypes, strict=True))
    return Summary(type(model).__name__, given, batch_size, tuple(layers), steps, products, kind)


def _lasting(model: Module, optimizer: Any) -> tuple[Counter[tuple[str, str]], str | None]:
    """Return the bytes that last from step to step, by device and part, and the name of the optimizer's class."""
    found: Counter[tuple[str, str]] = Counter()
    for part, tensors in (("parameters", model.parameters()), ("buffers", model.buffers())):
        for x in tensors:
            found[str(x.device), part] += _bytes(x)
    if optimizer is None:
        groups: list[tuple[list[Tensor], int]] = [([p for p in model.parameters() if p.requires_grad], 0)]
    elif hasattr(optimizer, "param_groups"):
        groups = [(g["params"], len(optimizer.needed_state(g))) for g in optimizer.param_groups]
    elif callable(optimizer):
        optimizer = optimizer([Parameter(zeros(1))])
        groups = [([*model.parameters()], len(optimizer.needed_state(optimizer.param_groups[0])))]
    else:
        raise TypeError(
            "optimizer must be an optimizer, or what makes one from parameters, such as gradflow.optim.Adam; got "
            f"{optimizer!r}"
        )
    for parameters, arrays in groups:
        for x in parameters:
            found[str(x.device), "gradients"] += _bytes(x)
            found[str(x.device), "optimizer"] += arrays * _bytes(x)
    return found, None if optimizer is None else type(optimizer).__name__


def _bytes(x: Tensor) -> int:
    return x.size * x.dtype.itemsize


def _at(batch: int) -> Callable[[int, int, int], int]:
    """Return what continues a count to a batch of this size, from those of the measured batches: Newton's formula."""
    first, step = _MEASURED[0], _MEASURED[1] - _MEASURED[0]
    n = Fraction(batch - first, step)
    return lambda a, b, c: max(0, math.ceil(a + n * (b - a) + n * (n - 1) / 2 * (c - 2 * b + a)))


def _shapes(given: Any) -> list[tuple[int, ...]]:
    """Return the shapes of the inputs of one sample."""
    several = is_sequence(given) and any(is_sequence(part) for part in given)
    try:
        shapes = [tuple(part) if is_sequence(part) else (part,) for part in (given if several else [given])]
        return [tuple(positive("a length", n) for n in shape) for shape in shapes]
    except (TypeError, ValueError):
        raise ValueError(
            "input_shape is the shape of one sample, such as (784,) or 784, or a sequence of shapes for several "
            f"inputs, of lengths of at least 1; got {_short(given)}"
        ) from None


def _short(given: Any) -> str:
    """Return what was given in one line: of samples, such as an array, only the shape."""
    shape = getattr(given, "shape", None)
    if isinstance(shape, tuple):
        return f"{type(given).__name__} of shape {shape}; of the samples in it: {shape[1:]}"
    return reprlib.repr(given)


def _dtypes(given: Any, inputs: int, default: DType) -> list[DType]:
    each = given if isinstance(given, (list, tuple)) else [given] * inputs
    kinds = [default if kind is None else as_dtype(kind) for kind in each]
    if len(kinds) != inputs:
        raise ValueError(f"dtype is one for all inputs, or one for each of {inputs}; got {len(kinds)}")
    return kinds


def size(n: int) -> str:
    """Return a number of bytes in three digits.

    >>> [size(n) for n in (0, 999, 20_520, 2_678_824, 3 * 10**9)]
    ['0 B', '999 B', '20.5 kB', '2.68 MB', '3.00 GB']
    """
    if n < 1000:
        return f"{n} B"
    x, unit = n / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if x >= 999.5:
            x, unit = x / 1000, larger
    return f"{x:.{max(0, 3 - len(str(int(x))))}f} {unit}"


def _table(rows: Sequence[Sequence[str]], left: int) -> Iterator[str]:
    """Yield the lines of a table whose first `left` columns are aligned at the left; names that are long are cut."""
    full, *others = zip(*rows, strict=True)
    widths = [max(map(len, column)) for column in others]
    names = _cut(full, max(12, _WIDEST - sum(widths) - 3 * len(widths)))
    for cells in zip(names, *others, strict=True):
        line = [
            f"{c:{w}}" if i < left else f"{c:>{w}}"
            for i, (c, w) in enumerate(zip(cells, [max(12, *map(len, names)), *widths], strict=True))
        ]
        yield "   ".join(line).rstrip()


def _cut(names: Sequence[str], width: int) -> Sequence[str]:
    """Return names of at most this width, without a part in the middle, chosen so that different names stay different.

    Where no such part does, names stay long.
    """
    kept = width - len("...")
    for head in sorted(range(1, kept), key=lambda head: abs(head - kept // 3)):
        cut = [name if len(name) <= width else f"{name[:head]}...{name[head - kept :]}" for name in names]
        if len(set(cut)) == len(set(names)):
            return cut
    return names
