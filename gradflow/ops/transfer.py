"""Tensors on other devices and in other dtypes: `to`, and pinned memory."""

from __future__ import annotations

from typing import Any

from gradflow.autograd.batching import Batch
from gradflow.autograd.mapping import Level, device_backend
from gradflow.backend import Backend, Device
from gradflow.backend.discovery import backend_prefixes
from gradflow.backend.registry import DeviceLike, get_backend
from gradflow.dtypes import DTYPES, DType, as_dtype
from gradflow.ops.checks import check_tensors
from gradflow.ops.table import apply, cast, defop
from gradflow.tensor import Tensor


def native_dtype(backend: Backend, dtype: Any) -> Any:
    """The backend's own dtype object. Raises TypeError for a dtype that the device does not support."""
    return backend.native_dtype(as_dtype(dtype).name)


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
    """x on another device, or x itself if it is there already. Differentiable: the gradient moves back.

    non_blocking: see `Tensor.to`.

    Raises ValueError or DeviceUnavailableError for a device that does not exist here.
    """
    check_tensors("to", x)
    target = get_backend(device)
    if target is device_backend(x.backend):
        return x
    if target is not x.backend and isinstance(x.backend, Level):
        raise RuntimeError(f"inside vmap, tensors stay on their device: move them to {target.device} before")
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
    """This tensor on another device or in another dtype, or itself if there is nothing to change. Differentiable.

    target: a device or a dtype. To change both, pass `device` and `dtype`.
    non_blocking: copy a tensor from `pin_memory` asynchronously. The tensor must not change until the copy is done
    (see `gradflow.synchronize`). It has no effect on other tensors: they are copied to a GPU from a pinned copy that
    CuPy makes, and from a GPU after waiting for their values.

    Raises ValueError, TypeError or DeviceUnavailableError for a device or a dtype that does not exist here.

    >>> import gradflow as gf
    >>> import gradflow.testing  # the device "fake"
    >>> x = gf.tensor([1.0, 2.0], requires_grad=True)
    >>> y = x.to("fake", dtype="float64")
    >>> y.sum().backward()
    >>> y.device, x.grad
    (Device('fake:0'), tensor([1., 1.], dtype=float32, device=cpu))
    """
    device, dtype = device_and_dtype(target, dtype, device)
    out = x if device is None else to_device(x, device, non_blocking)
    return out if dtype is None else cast(out, dtype)


def device_and_dtype(target: Any, dtype: Any, device: DeviceLike | None) -> tuple[DeviceLike | None, DType | None]:
    """The device and the dtype that the arguments of `to` name, or None. Raises ValueError for an unknown name."""
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
    """A copy of this CPU tensor in pinned (page-locked) memory, from which `device` copies fastest.

    Use it with `.to(device, non_blocking=True)`. For a device without pinned memory, such as the CPU, it is the tensor
    itself. Raises RuntimeError for a tensor on another device or one that requires grad, DeviceUnavailableError for a
    `device` that cannot be used.

    >>> import gradflow as gf
    >>> x = gf.ones(3).pin_memory("cpu")
    >>> x.to("cpu", non_blocking=True).tolist()
    [1.0, 1.0, 1.0]
    """
    if x.device.type != "cpu":
        raise RuntimeError(f"only a tensor on the cpu can be pinned; this one is on {x.device}: use .cpu() first")
    if x._node is not None:
        raise RuntimeError("a tensor that requires grad cannot be pinned: use .detach() first")
    pinned = get_backend(device).pin(x.array)
    return x if pinned is x.array else type(x)(pinned, x.backend)
