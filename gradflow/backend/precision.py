"""How precisely devices multiply matrices of float32."""

from __future__ import annotations

PRECISIONS = ("highest", "tf32")
_precision = "highest"


def get_matmul_precision() -> str:
    """The precision of products of float32 matrices that `set_matmul_precision` set, at first "highest".

    >>> import gradflow as gf
    >>> gf.get_matmul_precision()
    'highest'
    """
    return _precision


def set_matmul_precision(precision: str) -> None:
    """Set how precisely devices multiply matrices of float32, in this process and all its threads.

    precision: "highest": in float32. "tf32": on NVIDIA GPUs of compute capability 8.0 or higher, the factors are
    rounded to TF32, with 10 bits after the leading one in place of 23, and their products are added up in float32. On
    an H100, large products are then 8 times as fast, with errors of up to 3e-4 of the largest element in place of
    1e-6. Other devices and dtypes multiply as before.

    Gradients are computed with the precision at the time of `backward()`. After a change, a captured step is recorded
    for the new precision.

    Raises ValueError for another precision.

    >>> import gradflow as gf
    >>> gf.set_matmul_precision("tf32")
    >>> gf.get_matmul_precision()
    'tf32'
    >>> gf.set_matmul_precision("highest")
    """
    global _precision
    if precision not in PRECISIONS:
        hint = '; PyTorch\'s "high" and "medium" are "tf32"' if precision in ("high", "medium") else ""
        raise ValueError(f'the precision of products is "highest" or "tf32"; got {precision!r}{hint}')
    _precision = precision
