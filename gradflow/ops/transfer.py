"""Tensors on other devices and in other dtypes: `to`, and pinned memory."""

from __future__ import annotations

from typing import Any

from gradflow.autograd.batching import Batch
from gradflow.backend import Backend, Device
from gradflow.backend.discovery import backend_prefixes
from gradflow.backend.registry import DeviceLike, get_backend
from gradflow.dtypes import DTYPES, DType, as_dtype
from gradflow.ops.checks import check_tensors
from gradflow.ops.table import apply, cast, defop
from gradflow.tensor import Tensor


def native_dtype(backend: Backend, dtype: Any) -> Any:
    """The backend's own dtype object. TypeError where it has none of that name."""
    name = as_dtype(dtype).name
    if not backend.supports(name):
        raise TypeError(f"device {backend.device} does not support {name}")
    return backend.dtypes[name]


def _moved(F: Backend, x: Any, target: Backend, non_blocking: bool = False) -> Any:
    values = F.host_values(x)
    return target.from_host_later(values) if non_blocking else target.from_host(values)


def _moved_back(F: Any, g: Any, _out: Any, _x: Any, target: Backend, non_blocking: bool) -> Any:
    if isinstance(g, Batch):
        return Batch(_moved_back(F, g.values, _out, _x, target, non_blocking))
    source = _x.backend
    return to_device(g, source.device) if isinstance(g, Tensor) else _moved(target, g, source)


_TO_DEVICE = defop("to_device", _moved_back, forward=_moved, exact=True)


def to_device(x: Tensor, /, device: DeviceLike, non_blocking: bool = False) -> Tensor:
    """x on another device; x itself where it is there already. Differentiable: the gradient comes back.

    With `non_blocking`, x must not change before the copy is over; see `Tensor.to`.
    Raises ValueError or DeviceUnavailableError for a device that does not exist here.
    """
    check_tensors("to", x)
    target = get_backend(device)
    if target is x.backend:
        return x
    native_dtype(target, x.dtype)
    return apply(_TO_DEVICE, (x,), {"target": target, "non_blocking": non_blocking}, target)


def to(
    x: Tensor,
    /,
    target: Any = None,
    dtype: Any = None,
    *,
    device: DeviceLike | None = None,
    non_blocking: bool = False,
) -> Tensor:
    """This tensor on another device, or in another dtype; itself where it is there already. Differentiable.

    `target` is either of the two; `device` and `dtype` are for both at once. With `non_blocking`, a tensor from
    `pin_memory` goes to its device while the host and the device go on; it must not change until then (see
    `gradflow.synchronize`). Other tensors move as without it: to a GPU through a copy that CuPy makes first, from
    a GPU when their values are there. Raises ValueError, TypeError or DeviceUnavailableError for what does not
    exist here.
    """
    device, dtype = device_and_dtype(target, dtype, device)
    out = x if device is None else to_device(x, device, non_blocking)
    return out if dtype is None else cast(out, dtype)


def device_and_dtype(target: Any, dtype: Any, device: DeviceLike | None) -> tuple[DeviceLike | None, DType | None]:
    """What the arguments of `to` name, None for what they do not. ValueError for a name of neither kind."""
    is_device = isinstance(target, Device)
    if isinstance(target, str) and target not in DTYPES:
        devices = [*backend_prefixes(), "auto"]
        is_device = target.partition(":")[0] in devices
        if not is_device:
            raise ValueError(
                f"unknown device or dtype {target!r}; there are the devices {', '.join(devices)} "
                f"and the dtypes {', '.join(DTYPES)}"
            )
    if target is not None:
        if (device if is_device else dtype) is not None:
            raise TypeError(f"to got two {'devices' if is_device else 'dtypes'}")
        device, dtype = (target, dtype) if is_device else (device, target)
    if device is None and dtype is None:
        raise TypeError("to needs a device, a dtype, or both: to('cuda', dtype='float32')")
    return device, None if dtype is None else as_dtype(dtype)


def pin_memory(x: Tensor, /, device: DeviceLike = "cuda") -> Tensor:
    """A copy of this tensor, still on the CPU, in memory from which `device` copies fastest (page-locked).

    For `.to(device, non_blocking=True)`. A device without such memory, the CPU for one, gives the tensor itself.
    Raises RuntimeError for a tensor of another device, or one that needs a gradient; DeviceUnavailableError for
    a `device` that cannot be used.
    """
    if x.device.type != "cpu":
        raise RuntimeError(f"only a tensor on the cpu can be pinned; this one is on {x.device}: use .cpu() first")
    if x._node is not None:
        raise RuntimeError("pinned memory cannot carry the gradient that this tensor requires: use .detach() first")
    pinned = get_backend(device).pin(x.array)
    return x if pinned is x.array else type(x)(pinned, x.backend)
