"""Diagonals and triangles of matrices, and `einsum`: compositions of other operations."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from gradflow.dtypes import promote
from gradflow.ops.checks import check_tensors, kind_of
from gradflow.ops.creation import arange
from gradflow.ops.elementwise import greater_equal, less_equal, multiply, where
from gradflow.ops.indexing import index, scatter_add
from gradflow.ops.network import matmul
from gradflow.ops.reductions import sum
from gradflow.ops.shape import permute_dims, reshape
from gradflow.ops.table import bools_to_int64, cast
from gradflow.pytorch_names import refuse, refuses_keywords
from gradflow.shapes import integer
from gradflow.tensor import Tensor

__all__ = ["diag", "einsum", "tril", "triu"]


@refuses_keywords
def diag(x: Tensor, /, k: int = 0, diagonal: None = None) -> Tensor:
    """The k-th diagonal of a matrix, or the matrix with the vector x on its k-th diagonal and 0 elsewhere.

    k: 0 for the main diagonal (default), positive for one above it, negative for one below.

    Raises ValueError for a tensor with another number of axes than one or two.

    >>> import gradflow as gf
    >>> gf.diag(gf.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist(), gf.diag(gf.tensor([5.0]), k=1).tolist()
    ([1.0, 4.0], [[0.0, 5.0], [0.0, 0.0]])
    """
    if diagonal is not None:
        refuse("diag", diagonal=diagonal)
    check_tensors("diag", x)
    k = integer("k of diag", k)
    if x.ndim == 1:
        columns = x.size + abs(k)
        places = _diagonal(k, columns, x.size)
        return reshape(scatter_add(x, (places, ...), (columns * columns,)), (columns, columns))
    if x.ndim != 2:
        raise ValueError(f"diag takes a tensor of one or two axes; the shape is {x.shape}")
    rows, columns = x.shape
    length = max(0, min(rows + min(k, 0), columns - max(k, 0)))
    return index(reshape(x, -1), _diagonal(k, columns, length))


def _diagonal(k: int, columns: int, length: int) -> slice:
    """Where the k-th diagonal lies in a matrix of so many columns, flattened."""
    start = k if k >= 0 else -k * columns
    return slice(start, start + (length - 1) * (columns + 1) + 1, columns + 1) if length else slice(0, 0)


@refuses_keywords
def tril(x: Tensor, /, k: int = 0, diagonal: None = None) -> Tensor:
    """The lower triangle of each matrix (..., n, m): x up to its k-th diagonal, and 0 above it.

    k: 0 for the main diagonal (default), positive for one above it, negative for one below. Raises ValueError for fewer
    than two axes.

    >>> import gradflow as gf
    >>> gf.tril(gf.ones((3, 3))).tolist()
    [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    """
    if diagonal is not None:
        refuse("tril", diagonal=diagonal)
    return _triangle("tril", x, k)


@refuses_keywords
def triu(x: Tensor, /, k: int = 0, diagonal: None = None) -> Tensor:
    """The upper triangle of each matrix (..., n, m): x from its k-th diagonal on, and 0 below it.

    k: as for `tril`. Raises ValueError for fewer than two axes.

    >>> import gradflow as gf
    >>> gf.triu(gf.ones((3, 3)), k=1).tolist()
    [[0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """
    if diagonal is not None:
        refuse("triu", diagonal=diagonal)
    return _triangle("triu", x, k)


def _triangle(name: str, x: Tensor, k: int) -> Tensor:
    check_tensors(name, x)
    k = integer(f"k of {name}", k)
    if x.ndim < 2:
        raise ValueError(f"{name} takes a tensor of two or more axes; the shape is {x.shape}")
    rows, columns = x.shape[-2:]
    edge = arange(k, k + rows, device=x.device)[:, None]  # the column of the k-th diagonal in each row
    columns_of = arange(columns, device=x.device)
    keep = less_equal(columns_of, edge) if name == "tril" else greater_equal(columns_of, edge)
    return where(keep, x, False if x.dtype.kind == "bool" else 0)


def einsum(subscripts: str, /, *operands: Tensor) -> Tensor:
    """Sums of products after Einstein: einsum("ij,jk->ik", a, b) is the matrix product of a and b.

    subscripts: one letter for each axis of each operand, operands separated by commas; after "->" the letters of the
        result. Letters that the result lacks are summed over. Without "->", the result has the letters that occur
        once, in alphabetical order. "..." stands for further axes, which broadcast. A letter that an operand has twice
        takes its diagonal. Spaces do not matter.
    operands: tensors, multiplied from left to right, each pair by one batched matrix product where a letter is summed
        over. Axes of length 1 broadcast.

    Raises ValueError for subscripts that do not fit the operands.

    >>> import gradflow as gf
    >>> a, b = gf.tensor([[1.0, 2.0], [3.0, 4.0]]), gf.tensor([1.0, 10.0])
    >>> gf.einsum("ij,j->i", a, b).tolist(), gf.einsum("ii->", a).item(), gf.einsum("ij->ji", a).tolist()
    ([21.0, 43.0], 5.0, [[1.0, 3.0], [2.0, 4.0]])
    """
    if not isinstance(subscripts, str):
        raise TypeError(f"einsum takes its subscripts first, as text; got {kind_of(subscripts)}")
    check_tensors("einsum", *operands)
    terms, result = _parsed(subscripts, operands)
    lengths: dict[str, int] = {}
    for term, x in zip(terms, operands, strict=True):
        for letter, n in zip(term, x.shape, strict=True):
            known = lengths.setdefault(letter, n)
            if known == 1:
                lengths[letter] = n
            elif n not in (1, known):
                raise _misfit(subscripts, operands, f"an axis has the lengths {known} and {n}")
    operands = tuple(map(bools_to_int64, operands))
    dtype = functools.reduce(promote, [x.dtype for x in operands])
    factors = [
        _without_repeats(cast(x, dtype), term, lengths, subscripts) for x, term in zip(operands, terms, strict=True)
    ]
    value, letters = factors[0]
    for i, (x, term) in enumerate(factors[1:], 2):
        value, letters = _product(value, letters, x, term, set(result).union(*(later for _, later in factors[i:])))
    value, letters = _summed(value, letters, set(result))
    return permute_dims(value, [letters.index(a) for a in result])


def _misfit(subscripts: str, operands: Sequence[Tensor], why: str) -> ValueError:
    shapes = ", ".join(str(x.shape) for x in operands)
    return ValueError(f"einsum {subscripts!r} does not fit the shapes {shapes}: {why}")


def _parsed(subscripts: str, operands: Sequence[Tensor]) -> tuple[list[str], str]:
    """The letters of each operand and of the result. See `_further` for "..."."""
    left, arrow, right = subscripts.replace(" ", "").partition("->")
    given = left.split(",")
    if len(given) != len(operands):
        raise _misfit(subscripts, operands, f"it has terms for {len(given)} operands")
    for term in (*given, right):
        if term.count("...") > 1 or not all(a.isascii() and a.isalpha() for a in term.replace("...", "", 1)):
            raise ValueError(f"einsum takes letters, commas, '->' and '...' once in each term; got {subscripts!r}")
    terms, most = [], 0
    for term, x in zip(given, operands, strict=True):
        further = x.ndim - len(term.replace("...", ""))
        if further < 0 or (further and "..." not in term):
            raise _misfit(subscripts, operands, f"{term!r} has letters for another number of axes than {x.ndim}")
        most = max(most, further)
        terms.append(term.replace("...", _further(further)))
    if not arrow:
        letters = "".join(terms)
        once = sorted(a for a in set(letters) if letters.count(a) == 1 and a.isascii())
        return terms, _further(most) + "".join(once)
    result = right.replace("...", _further(most))
    if len(set(result)) < len(result) or not set(result) <= set("".join(terms)):
        raise ValueError(f"einsum: each letter of the result occurs in it once, and in an operand; got {subscripts!r}")
    return terms, result


def _further(count: int) -> str:
    """Names for the last `count` of the axes that "..." stands for: characters beyond the letters."""
    return "".join(chr(0x100 + i) for i in reversed(range(count)))


def _without_repeats(x: Tensor, term: str, lengths: dict[str, int], subscripts: str) -> tuple[Tensor, str]:
    """x with one axis for each letter, the diagonal for one that occurs twice, and without axes that broadcast."""
    for a in sorted(set(term)):
        while term.count(a) > 1:
            first = term.index(a)
            second = term.index(a, first + 1)
            n = x.shape[first]
            if x.shape[second] != n:
                raise _misfit(subscripts, [x], f"the axes {a!r} have the lengths {n} and {x.shape[second]}")
            others = [i for i in range(x.ndim) if i not in (first, second)]
            x = reshape(permute_dims(x, [*others, first, second]), (*(x.shape[i] for i in others), n * n))
            x = index(x, (..., slice(None, None, n + 1)))
            term = "".join(term[i] for i in others) + a
    kept = [i for i, a in enumerate(term) if x.shape[i] == lengths[a]]
    return reshape(x, tuple(x.shape[i] for i in kept)), "".join(term[i] for i in kept)


def _summed(x: Tensor, letters: str, needed: set[str]) -> tuple[Tensor, str]:
    """x summed over the axes whose letters are not needed any more."""
    axes = tuple(i for i, a in enumerate(letters) if a not in needed)
    return (sum(x, axis=axes) if axes else x), "".join(a for a in letters if a in needed)


def _product(x: Tensor, a: str, y: Tensor, b: str, needed: set[str]) -> tuple[Tensor, str]:
    """The product of x and y, summed over the letters that both have and that are not needed any more."""
    x, a = _summed(x, a, needed | set(b))
    y, b = _summed(y, b, needed | set(a))
    batch = "".join(c for c in a if c in b and c in needed)
    inner = "".join(c for c in a if c in b and c not in needed)
    left, right = ("".join(c for c in term if c not in other) for term, other in ((a, b), (b, a)))
    lengths = dict(zip(a + b, x.shape + y.shape, strict=True))

    def size(letters: str) -> int:
        return math.prod(lengths[c] for c in letters)

    x = permute_dims(x, [a.index(c) for c in batch + left + inner])
    y = permute_dims(y, [b.index(c) for c in batch + inner + right])
    outer = (size(batch),) if batch else ()
    x, y = reshape(x, (*outer, size(left), size(inner))), reshape(y, (*outer, size(inner), size(right)))
    out = matmul(x, y) if inner else multiply(x, y)
    return reshape(out, tuple(lengths[c] for c in batch + left + right)), batch + left + right
