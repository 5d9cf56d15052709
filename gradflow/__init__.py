"""gradflow: automatic differentiation and training of multilayer perceptrons, the same code on CPU and GPU."""

from gradflow import ops, random
from gradflow.backend import Backend, Diagnosis, Device
from gradflow.device import (
    DeviceMismatchError,
    DeviceUnavailableError,
    choose_device,
    current_device,
    devices,
    diagnose,
    get_backend,
    memory_stats,
    register_backend,
    synchronize,
    use_device,
)
