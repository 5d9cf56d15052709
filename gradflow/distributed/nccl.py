"""`NCCLCommunicator`: ranks with a CUDA device each, which exchange arrays on the devices by NCCL.

Exchanges run on a stream of their own, beside the backward pass: they wait for what is queued when they start, and what
is queued after `wait` waits for them. The host never waits. In a captured step they are part of the CUDA graph.

It has run on one GPU alone, where a sum changes nothing; with several it is unproven.
"""

from __future__ import annotations

from typing import Any

from gradflow.distributed.communicator import Communicator
from gradflow.environment import imported_extra

_TYPES = {
    "float16": "NCCL_FLOAT16", "bfloat16": "NCCL_BFLOAT16", "float32": "NCCL_FLOAT32", "float64": "NCCL_FLOAT64",
    "int32": "NCCL_INT32", "int64": "NCCL_INT64", "uint8": "NCCL_UINT8",
}  # fmt: skip


class NCCLCommunicator(Communicator):
    """The ranks of another communicator, on the CUDA devices that are current when it is made.

    host: exchanges the identifier by which the ranks find each other. Raises ModuleNotFoundError without NCCL.
    """

    def __init__(self, host: Communicator) -> None:
        cupy = imported_extra("cupy", "CuPy", "cuda12", "training on several GPUs")
        nccl = imported_extra("cupy.cuda.nccl", "CuPy", "cuda12", "training on several GPUs")
        if not nccl.available:
            raise ModuleNotFoundError(
                "training on several GPUs needs NCCL, which CuPy does not find: pip install nvidia-nccl-cu12"
            )
        self.rank, self.size, self._host = host.rank, host.size, host
        self._cuda, self._nccl = cupy.cuda, nccl
        identifier = host.text_of("" if self.rank else nccl.get_unique_id().hex())
        self._nccl_ranks = nccl.NcclCommunicator(self.size, bytes.fromhex(identifier), self.rank)
        self._stream = cupy.cuda.Stream(non_blocking=True)

    def start_sum(self, array: Any) -> _Queued:
        data = array.data.ptr
        self._begin()
        kind = getattr(self._nccl, _TYPES[array.dtype.name])
        self._nccl_ranks.allReduce(data, data, array.size, kind, self._nccl.NCCL_SUM, self._stream.ptr)
        return _Queued(self._cuda, self._stream.record())

    def broadcast(self, array: Any, root: int = 0) -> None:
        data = array.data.ptr
        self._begin()
        self._nccl_ranks.broadcast(data, data, array.nbytes, self._nccl.NCCL_UINT8, root, self._stream.ptr)
        _Queued(self._cuda, self._stream.record()).wait()

    def barrier(self) -> None:
        self._host.barrier()

    def _begin(self) -> None:
        """Make the stream wait for what is queued so far."""
        self._stream.wait_event(self._cuda.get_current_stream().record())


class _Queued:
    """An exchange that is queued on the stream of the communicator, up to an event."""

    def __init__(self, cuda: Any, event: Any) -> None:
        self._cuda, self._event = cuda, event

    def wait(self) -> None:
        self._cuda.get_current_stream().wait_event(self._event)
