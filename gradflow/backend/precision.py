"""How precisely devices multiply float32 matrices."""

from __future__ import annotations

PRECISIONS = ("highest", "tf32")
_precision = "highest"


def matmul_precision() -> str:
    """The precision of products of float32 matrices, as `set_matmul_precision` set it.

    >>> import gradflow as gf
    >>> gf.matmul_precision()
    'highest'
    """
    return _precision
