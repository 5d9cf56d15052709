"""The public names of `gradflow` other than its operations and packages.

Type checkers need an `__all__` that is written out. In `gradflow/__init__.py`, it would hide the operations from them,
whose names come from the `__all__` of their modules.
"""

from gradflow.autograd.autocast import autocast
from gradflow.autograd.grad_mode import enable_grad, is_grad_enabled, no_grad
from gradflow.backend import Device, Diagnosis, get_matmul_precision, set_matmul_precision
from gradflow.backend.device import DeviceMismatchError, DeviceUnavailableError
from gradflow.backend.registry import (
    choose_device,
    current_device,
    devices,
    diagnose,
    free_memory,
    get_backend,
    get_num_threads,
    memory_stats,
    register_backend,
    set_num_threads,
    synchronize,
    use_device,
)
from gradflow.debug.anomaly import NonFiniteError, detect_anomaly
from gradflow.debug.gradcheck import GradcheckError, gradcheck, gradgradcheck
from gradflow.default_dtype import current_dtype, use_dtype
from gradflow.dtypes import (
    DType,
    bfloat16,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
)
from gradflow.dtypes import bool_ as bool
from gradflow.ops.custom import operation
from gradflow.profiling.profile import profile
from gradflow.random.generator import Generator, manual_seed
from gradflow.replay.step import capture
from gradflow.saving import InvalidFileError, load, save
from gradflow.tensor import Tensor
from gradflow.transforms.derivatives import grad, gradients, jvp, value_and_grad, vjp
from gradflow.transforms.jacobians import hessian, hvp, jacobian
from gradflow.transforms.mapping import vmap
from gradflow.transforms.recompute import checkpoint

__all__ = [
    "DType",
    "Device",
    "DeviceMismatchError",
    "DeviceUnavailableError",
    "Diagnosis",
    "Generator",
    "GradcheckError",
    "InvalidFileError",
    "NonFiniteError",
    "Tensor",
    "autocast",
    "bfloat16",
    "bool",
    "capture",
    "checkpoint",
    "choose_device",
    "current_device",
    "current_dtype",
    "detect_anomaly",
    "devices",
    "diagnose",
    "enable_grad",
    "float16",
    "float32",
    "float64",
    "free_memory",
    "get_backend",
    "get_matmul_precision",
    "get_num_threads",
    "grad",
    "gradcheck",
    "gradgradcheck",
    "gradients",
    "hessian",
    "hvp",
    "int8",
    "int16",
    "int32",
    "int64",
    "is_grad_enabled",
    "jacobian",
    "jvp",
    "load",
    "manual_seed",
    "memory_stats",
    "no_grad",
    "operation",
    "profile",
    "register_backend",
    "save",
    "set_matmul_precision",
    "set_num_threads",
    "synchronize",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "use_device",
    "use_dtype",
    "value_and_grad",
    "vjp",
    "vmap",
]
