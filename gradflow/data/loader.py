"""Batches on the device. The data is kept there, or on the host if the device has too little memory for it.

The order of an epoch is a permutation drawn by a counter-based generator, so the batches are the same on every device
and wherever the data is kept, and the host never waits for a device to know them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from operator import index
from typing import Any

import gradflow as gf
from gradflow.backend.registry import DeviceLike
from gradflow.data.checks import SetOnce, check_finite, fingerprint, host_array, weights_of
from gradflow.data.streaming import streamed
from gradflow.ops.transfer import native_dtype
from gradflow.random.shares import Share, share_of

_GATHERED = 1 << 18
"""The largest number of elements that are gathered at once, for several batches."""


class Batches(SetOnce):
    """An iterable of batches on a device: pairs of inputs and targets, or triples with weights. One pass is an epoch.

    inputs, targets: arrays, lists or tensors with the samples along their first axis. Dtypes stay; lists of numbers
        become that of `use_dtype` (float32).
    batch_size: samples per batch. The last batch of an epoch may be smaller.
    generator: draws the order of each epoch (default: gradflow's global generator).
    shuffle: whether each epoch has a new order (default True).
    drop_last: whether to leave out a smaller last batch (default False).
    device: where the batches are (default: the current device).
    weights: one finite number of at least 0 for each sample, not all 0 (default: no weights). They become float64 for
        float64 inputs, else float32.
    keep: "device" to copy the data to the device; "host" to leave it on the host, also in a `numpy.memmap`, from where
        batches are copied ahead while the device computes; None (default) for "device" if the data takes at most half
        of the device's free memory. The batches are the same. Tensors on the device are not copied, and data on the
        host is read during each epoch: do not change either.

    The attributes are set once: for another batch size, make new Batches.

    Raises ValueError for no samples, unequal numbers of samples, no complete batch with `drop_last`, a batch size
    below 1, or other weights; TypeError for data that is not an array of numbers.

    >>> import gradflow as gf
    >>> from gradflow.data import Batches
    >>> labels = gf.tensor([0, 1, 1], dtype="int64")
    >>> batches = Batches([[0.5], [1.5], [2.5]], labels, batch_size=2, shuffle=False)
    >>> [(x.tolist(), y.tolist()) for x, y in batches]
    [([[0.5], [1.5]], [0, 1]), ([[2.5]], [1])]
    """

    def __init__(
        self,
        inputs: Any,
        targets: Any,
        batch_size: int,
        generator: gf.Generator | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        device: DeviceLike | None = None,
        *,
        weights: Any = None,
        keep: str | None = None,
    ) -> None:
        backend = gf.get_backend(device)
        self.device = backend.device
        if keep not in (None, "device", "host"):
            raise ValueError(f"keep is 'device', 'host' or None; got {keep!r}")
        data = {"inputs": host_array("inputs", inputs), "targets": host_array("targets", targets)}
        n = len(data["inputs"])
        if n != len(data["targets"]):
            raise ValueError(f"each input needs one target; got {n} inputs and {len(data['targets'])} targets")
        if not n:
            raise ValueError("Batches needs at least one sample; got none")
        if isinstance(batch_size, bool) or not hasattr(batch_size, "__index__") or batch_size < 1:
            raise ValueError(f"batch_size must be an integer of at least 1; got {batch_size!r}")
        if drop_last and batch_size > n:
            raise ValueError(f"with drop_last, {n} samples give no batch of {batch_size}: choose a smaller batch_size")
        if weights is not None:
            data["weights"] = weights_of(weights, data["inputs"])
        for x in data.values():
            native_dtype(backend, x.dtype.name)
        self.kept = keep or _where_it_fits(backend, list(data.values()))
        """Where the data is kept: "device" or "host"."""
        kept = {name: _kept(x, self.device, self.kept) for name, x in data.items()}
        self.inputs, self.targets, self.weights = kept["inputs"], kept["targets"], kept.get("weights")
        self.batch_size = index(batch_size)
        self.generator = generator
        self.shuffle = shuffle
        self.drop_last = drop_last
        self._ranks: tuple[int, int] | None = None
        self._results: dict[str, Any] = {}

    def __repr__(self) -> str:
        each = [f"{name} {tuple(x.shape[1:])} {x.dtype}" for name, x in self._data().items()]
        return (
            f"Batches({len(self.inputs)} samples of {', '.join(each[:-1])} and {each[-1]}, "
            f"batch_size={self.batch_size}, shuffle={self.shuffle}, drop_last={self.drop_last}, "
            f"device={self.device}, kept on the {self.kept})"
        )

    def _data(self) -> dict[str, Any]:
        found = {"inputs": self.inputs, "targets": self.targets, "weights": self.weights}
        return {name: x for name, x in found.items() if x is not None}

    @property
    def samples(self) -> int:
        """The number of samples in an epoch."""
        n = len(self.inputs)
        return n - n % self.batch_size if self.drop_last else n

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return -(-self.samples // self.batch_size)

    def in_order(self) -> Batches:
        """Return batches of the same data, which is not copied: all samples, in order, without drawing numbers."""
        other = copy.copy(self)
        vars(other).update(shuffle=False, drop_last=False)
        return other

    def shared(self, rank: int, size: int) -> Batches:
        """Return batches of the same data, which is not copied: of each batch, the share of one of `size` ranks.

        Every rank draws the order of the whole epoch, so that all have the same without exchanging it.
        """
        other = copy.copy(self)
        vars(other).update(_ranks=(rank, size))
        return other

    def share(self, number: int) -> Share:
        """The share of batch `number` that an epoch has: the whole batch, unless the batches are `shared`."""
        total = min(self.batch_size, self.samples - number * self.batch_size)
        return share_of(total, *self._ranks or (0, 1))

    def __iter__(self) -> Iterator[tuple[gf.Tensor, ...]]:
        return self.epoch()

    def epoch(self, first: int = 0) -> Iterator[tuple[gf.Tensor, ...]]:
        """An iterator over a new epoch, from its batch number `first` on (default 0; `len(self)`: no batch).

        This call draws the order of the whole epoch, so an epoch goes on from batch `first` if the generator is in the
        state that it had before the epoch began. Batches before `first` are not copied.

        Raises ValueError unless `first` is an integer in [0, len(self)].
        """
        if isinstance(first, bool) or not hasattr(first, "__index__") or not 0 <= index(first) <= len(self):
            raise ValueError(f"an epoch has {len(self)} batches; it cannot start at batch {first!r}")
        data = list(self._data().values())
        order = self.order() if self.shuffle else None
        start = index(first) * self.batch_size
        batch_elements = self.batch_size * sum(x.size for x in data) // len(self.inputs)
        step = self.batch_size * max(1, _GATHERED // max(1, batch_elements))  # slicing is cheaper than gathering
        parts = [slice(i, min(i + step, self.samples)) for i in range(start, self.samples, step)]
        if self._ranks is not None:
            parts = [self._positions(i) for i in range(index(first), len(self))]
        if self.kept == "host":
            rows = None if order is None else order.backend.host_values(order.array)
            streaming = streamed(gf.get_backend(self.device), data, rows, parts)
            return self._sliced(streaming) if self._ranks is None else streaming
        if self._ranks is not None:
            return (self._rows(data, order, part) for part in parts)
        if order is not None:
            return self._gathered(order, parts)
        return self._sliced(tuple(x[part] for x in data) for part in ([slice(start, self.samples)] if parts else []))

    def order(self) -> gf.Tensor:
        """Draw the order of a new epoch: the sample at each position, int64, (number of samples,).

        Without `shuffle`, they are in order, and nothing is drawn. It is on the device if the data is kept there, else
        on the CPU. With `drop_last`, the epoch ends before the last positions.
        """
        n, where = len(self.inputs), self.device if self.kept == "device" else "cpu"
        if self.shuffle:
            return gf.random.permutation(n, device=where, generator=self.generator)
        return gf.arange(n, dtype="int64", device=where)

    def on_device(self) -> tuple[gf.Tensor, ...] | None:
        """The tensors that batches are gathered from: inputs, targets and weights; None if they are on the host."""
        return tuple(self._data().values()) if self.kept == "device" else None

    def _positions(self, number: int) -> slice:
        """The positions in an epoch of the share of a batch."""
        share, start = self.share(number), number * self.batch_size
        return slice(start + share.first, start + share.first + share.rows)

    def _rows(self, data: list[gf.Tensor], order: gf.Tensor | None, part: slice) -> tuple[gf.Tensor, ...]:
        """The samples at some positions of an epoch."""
        if order is None:
            return tuple(x[part] for x in data)
        F = order.backend
        rows = F.reshape(F.getitem(order.array, (part, ...)), (1, -1))
        gathered = F.take_rows([x.array for x in data], rows)
        return tuple(gf.Tensor(F.getitem(x, (0, ...)), F) for x in gathered)

    def _gathered(self, order: gf.Tensor, parts: list[slice]) -> Iterator[tuple[gf.Tensor, ...]]:
        """The batches of each part of an order; they share no memory."""
        backend, arrays = order.backend, [x.array for x in self._data().values()]
        for part in parts:
            whole = part.stop - (part.stop - part.start) % self.batch_size
            for some in (slice(part.start, whole), slice(whole, part.stop)):
                size = min(self.batch_size, some.stop - some.start)
                if size:
                    rows = backend.reshape(backend.getitem(order.array, (some, ...)), (-1, size))
                    gathered = backend.take_rows(arrays, rows)
                    for i in range(rows.shape[0]):
                        yield tuple(gf.Tensor(backend.getitem(x, (i, ...)), backend) for x in gathered)

    def _sliced(self, gathered: Iterator[tuple[gf.Tensor, ...]]) -> Iterator[tuple[gf.Tensor, ...]]:
        """The batches of gathered samples: views, made without the checks of an index, which would take longer."""
        for several in gathered:
            sources = [(x.array, x.backend, x._shared_memory()) for x in several]
            for start in range(0, len(several[0]), self.batch_size):
                key = (slice(start, start + self.batch_size), ...)
                batch = []
                for array, backend, memory in sources:
                    batch.append(part := gf.Tensor(backend.getitem(array, key), backend))
                    memory.add(part)
                yield tuple(batch)

    def check_finite(self) -> None:
        """Raise ValueError for the first NaN or infinity in inputs, targets or weights, with its row and column.

        Data on the device costs one read, data on the host is read in chunks. The answer is kept.
        """
        self._once("check_finite", check_finite)

    def fingerprint(self) -> str:
        """A hash of values, dtypes and shapes, in hexadecimal: equal for equal data, wherever it is kept.

        It is computed on the host, at about 1 GB/s, once: the result is kept.
        """
        return str(self._once("fingerprint", fingerprint))

    def _once(self, name: str, function: Callable[[dict[str, Any]], Any]) -> Any:
        """The result of a function of the data, computed once."""
        if name not in self._results:
            self._results[name] = function(self._data())
        return self._results[name]


def _where_it_fits(backend: Any, arrays: list[Any]) -> str:
    """ "device" if the arrays that are elsewhere take at most half of the device's free memory, or if it is unknown."""
    elsewhere = [x for x in arrays if not (isinstance(x, gf.Tensor) and x.device == backend.device)]
    needed = sum(x.size * x.dtype.itemsize for x in elsewhere)
    free = backend.available_memory() if elsewhere else None
    return "device" if free is None or needed <= free // 2 else "host"


def _kept(x: Any, device: gf.Device, where: str) -> Any:
    """An array or a tensor as a tensor on the device, without a copy if it is there; or as an array on the host."""
    if where == "host":
        return x.backend.host_values(x.array) if isinstance(x, gf.Tensor) else x
    return x.detach().to(device=device) if isinstance(x, gf.Tensor) else gf.tensor(x, device=device)
