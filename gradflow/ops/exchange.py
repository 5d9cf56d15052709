"""Arrays shared with other libraries, without a copy: DLPack and `__cuda_array_interface__`.

The protocol of DLPack is that of the Array API standard: `__dlpack__` and `__dlpack_device__` of the array that is
given, and a function `from_dlpack` of the library that takes it. The array libraries of the backends implement it.
"""

from __future__ import annotations

from typing import Any

from gradflow.autograd.memory import ForeignMemory
from gradflow.backend import Backend
from gradflow.backend.registry import DeviceLike, get_backend
from gradflow.dtypes import DTYPES, as_dtype
from gradflow.interception import forbid_replay
from gradflow.ops.checks import kind_of
from gradflow.ops.transfer import to_device
from gradflow.printing import describe
from gradflow.tensor import Tensor

__all__ = ["from_dlpack"]

_CPU, _CUDA = 1, 2
_SAME_MEMORY = {3: _CPU, 13: _CUDA}
"""Page-locked memory of the host, which CUDA allocated, and memory that CUDA manages, by their devices here."""
_PREFIXES = {_CPU: "cpu", _CUDA: "cuda"}
"""The devices whose arrays are found without `device`, by DLPack's numbers."""


def from_dlpack(x: Any, /, device: DeviceLike | None = None, copy: bool | None = None) -> Tensor:
    """A tensor in the memory of an array of another library, such as PyTorch, JAX, NumPy or CuPy.

    x: an array with `__dlpack__` and `__dlpack_device__`.
    device: that of the tensor (default: where x is). On another device, the tensor is a copy.
    copy: True for memory of its own, False to refuse a copy (default None: only for another device).

    Without a copy, each sees what is written through the other, but gradflow notices only in-place changes of this
    tensor and its views: what another library, or another tensor made of x, overwrites between the forward and the
    backward pass makes gradients wrong, without an error.
    Where x is read-only on the CPU, as JAX's arrays are, the tensor cannot be changed in place; CuPy has no read-only
    arrays. On CUDA, the current streams of both libraries wait for each other as the standard says.

    Raises TypeError for other objects; BufferError for an x that requires a gradient, for a dtype that gradflow or its
    array library does not exchange (complex numbers; bfloat16 on the CPU), for a kind of device without a backend, and
    for `copy=False` with another device.

    >>> import gradflow as gf
    >>> import numpy as np
    >>> values = np.zeros(3)
    >>> x = gf.from_dlpack(values)
    >>> values[1] = 5.0
    >>> x
    tensor([0., 5., 0.], dtype=float64, device=cpu)
    """
    if not (hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__")):
        raise TypeError(
            f"from_dlpack takes an array with __dlpack__ and __dlpack_device__; got {kind_of(x)}: "
            "make a tensor of it with gradflow.asarray"
        )
    forbid_replay("takes the memory of an array ({})")
    number, index = x.__dlpack_device__()
    place = (_SAME_MEMORY.get(int(number), int(number)), int(index))
    target = None if device is None else get_backend(device)
    source = target if target is not None and _place(target) == place else _backend_at(place)
    try:
        array = source.from_dlpack(x)
        as_dtype(source.dtype_name(array.dtype))
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        dtype = str(getattr(x, "dtype", "")).rpartition(".")[2]
        fix = "" if dtype in DTYPES and dtype != "bfloat16" else "; convert it to float32 first"
        raise BufferError(
            f"from_dlpack cannot take a {kind_of(x)} of {dtype}: {str(error).rstrip('.')}{fix}"
        ) from error
    if target is not None and target is not source:
        if copy is False:
            raise BufferError(f"from_dlpack: the array is on {source.device}, so {target.device} needs a copy of it")
        return to_device(Tensor(array, source), target.device)
    if copy:
        return Tensor(source.copy(array), source)
    out = Tensor(array, source)
    memory = x._shared_memory() if isinstance(x, Tensor) else ForeignMemory()
    memory.add(out)
    return out


def _place(backend: Backend) -> tuple[int, int] | None:
    """DLPack's numbers of a device, or None if its arrays are not exchanged."""
    return None if backend.dlpack_type is None else (backend.dlpack_type, backend.device.index)


def _backend_at(place: tuple[int, int]) -> Backend:
    """The backend of the device with these numbers of DLPack. BufferError if there is none."""
    number, index = place
    if number not in _PREFIXES:
        raise BufferError(
            f"DLPack's device {number}:{index} has no backend in gradflow, which takes arrays of the CPU (1) and of "
            "CUDA (2): copy the array to one of these first"
        )
    return get_backend(_PREFIXES[number] if number == _CPU else f"{_PREFIXES[number]}:{index}")


def dlpack(
    self: Tensor,
    *,
    stream: Any = None,
    max_version: tuple[int, int] | None = None,
    dl_device: tuple[int, int] | None = None,
    copy: bool | None = None,
) -> Any:
    """The memory of this tensor as a DLPack capsule, for the `from_dlpack` of another library, which calls this.

    stream: that of the consumer, which waits for the current stream here; None on the CPU.
    max_version: the latest version of DLPack that the consumer takes.
    dl_device: DLPack's numbers of the device where the consumer needs the data (default: where it is).
    copy: True for a copy, False to refuse one (default None: only for another device).

    The memory stays that of the tensor until `Module.to` moves a parameter; an optimizer that is created later leaves
    it where it is. Backward passes reuse the memory of a gradient.

    Raises BufferError for a tensor that requires grad, for bfloat16 on the CPU, for a tensor with reversed axes, which
    PyTorch and JAX do not take, and for a device whose arrays are not exchanged.
    """
    forbid_replay("gives its memory to another library ({})")
    place = _exported_place(self)
    if dl_device is not None and (wanted := (int(dl_device[0]), int(dl_device[1]))) != place:
        if copy is False:
            raise BufferError(f"a {describe(self)} cannot be exported to DLPack's device {wanted} without a copy")
        moved = to_device(self, _backend_at(wanted).device)
        return dlpack(moved, stream=None if wanted[0] == _CPU else stream, max_version=max_version)
    self._shared_memory()  # which makes an array of a NumPy scalar
    if not copy and any(step < 0 for step in getattr(self.array, "strides", ())):
        raise BufferError("a tensor with reversed axes is not exported without a copy: use .clone()")
    try:
        return self.backend.to_dlpack(self.array, stream=stream, max_version=max_version, copy=copy)
    except BufferError as error:
        fix = "; convert it with .astype('float32') first" if self.dtype.name == "bfloat16" else ""
        raise BufferError(f"a {describe(self)} is not exported: {str(error).rstrip('.')}{fix}") from error


def dlpack_device(self: Tensor) -> tuple[int, int]:
    """DLPack's numbers of the kind of device (1: CPU, 2: CUDA) and of the device. BufferError for others."""
    place = _place(self.backend)
    if place is None:
        raise BufferError(f"tensors on {self.device} are not exchanged through DLPack: use .cpu() first")
    return place


def _exported_place(self: Tensor) -> tuple[int, int]:
    """The place of a tensor that does not require grad. Raises BufferError for others."""
    if self._node is not None:
        raise BufferError("another library would not see the gradient of a tensor that requires grad: use .detach()")
    return dlpack_device(self)


def cuda_array_interface(self: Tensor) -> Any:
    """The memory of a tensor on CUDA, for libraries such as Numba; AttributeError on other devices.

    Raises BufferError for a tensor that requires grad.
    """
    if not hasattr(self.array, "__cuda_array_interface__"):
        raise AttributeError(f"a tensor on {self.device} has no __cuda_array_interface__")
    forbid_replay("gives its memory to another library ({})")
    _exported_place(self)
    return self.array.__cuda_array_interface__
