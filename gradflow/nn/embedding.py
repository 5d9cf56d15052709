"""Embeddings: trained vectors that are looked up by their index."""

from __future__ import annotations

from typing import Any

from gradflow import ops
from gradflow.backend.registry import DeviceLike
from gradflow.interception import opaque_call
from gradflow.nn import init
from gradflow.nn.constructors import positive, read_only
from gradflow.nn.module import Module
from gradflow.nn.parameter import Parameter
from gradflow.ops.checks import check_tensors
from gradflow.pytorch_names import explains_arguments
from gradflow.random.generator import Generator
from gradflow.tensor import Tensor


@explains_arguments
class Embedding(Module):
    """A table of trained vectors: weight[index] for each index.

    num_embeddings: the number of vectors; indices are in [0, num_embeddings).
    embedding_dim: the length of each vector.
    device, dtype: of the table (default, the current device and float32).
    generator: draws the initial values (default, the global generator).

    Parameter: weight, (num_embeddings, embedding_dim), which starts as N(0, 1), as in PyTorch. The gradients of an
    index that occurs several times add up. Raises ValueError for a size below 1.

    Indices out of range are refused on the CPU; elsewhere, looking would wait for the device, so a `Trainer` checks
    them before it trains.

    >>> import gradflow as gf
    >>> layer = gf.nn.Embedding(10, 3)
    >>> layer(gf.tensor([[0, 4], [9, 4]], dtype="int64")).shape
    (2, 2, 3)
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        device: DeviceLike | None = None,
        dtype: Any = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        shape = positive("num_embeddings", num_embeddings), positive("embedding_dim", embedding_dim)
        self.weight = Parameter(ops.zeros(shape, dtype, device))
        init.normal_(self.weight, generator=generator)

    num_embeddings = read_only("num_embeddings", lambda self: self.weight.shape[0], "The number of vectors.")
    embedding_dim = read_only("embedding_dim", lambda self: self.weight.shape[1], "The length of each vector.")

    def forward(self, indices: Tensor) -> Tensor:
        """indices: integers of any shape; the result: (*indices.shape, embedding_dim).

        Raises TypeError for other dtypes, IndexError on the CPU for an index out of range.
        """
        check_tensors("Embedding", indices)
        if indices.dtype.kind not in ("int", "uint"):
            raise TypeError(
                f"Embedding takes integer indices; got {indices.dtype}: make them with "
                "gradflow.tensor(indices, dtype='int64')"
            )
        if indices.device.type == "cpu" and indices.size:
            _check_range(indices, self.num_embeddings)
        return ops.take(self.weight, indices, axis=0)

    def extra_repr(self) -> str:
        return f"num_embeddings={self.num_embeddings}, embedding_dim={self.embedding_dim}"


@opaque_call
def _check_range(indices: Tensor, count: int) -> None:
    values = indices.backend.host_values(indices.array)
    if values.astype("uint64").max() >= count:  # negative indices become huge
        raise index_error(count, next(n for n in values.reshape(-1).tolist() if not 0 <= n < count))


def index_error(count: int, wrong: int) -> IndexError:
    """The error for an index that an embedding of so many vectors does not have."""
    return IndexError(f"an Embedding of {count} vectors needs indices in [0, {count}); got {wrong}")
