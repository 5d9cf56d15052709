"""The kernels of a linear layer: its three products, the mask of relu, and the sums of the bias's gradient."""

from __future__ import annotations

from typing import Any

from gradflow_numpy.native.kernels import kernel, target
from gradflow_numpy.native.tiles import (
    ADD,
    BLOCK,
    GROUP,
    RELU,
    STRAIGHT,
    TURNED,
    Factor,
    copy_columns,
    copy_transposed,
    multiply,
    parallel,
    smaller,
)  # fmt: skip

DIRECT, COPIED, PACKED = 0, 1, 2
"""How a kernel uses its second factor: where it lies, copied part by part into scratch, or as `pack` has made it."""
_ENOUGH = 64
"""Rows for which reading and copying the second factor takes little time beside the products."""
_ALIGNED = 16
"""Panels are so many rows long, or a multiple of it, since transposing writes whole vectors."""
_SUMMED = 1024
"""Rows that are summed one after another, in four sums; the sums of these blocks are added one after another."""
_FEW = 2048
"""The bytes of columns that `by_few` adds up at a time, and how many products it adds at once."""
_TERMS = 8
_DOT = 64
"""The bytes of the partial sums of a product of two rows."""


def _packed(fn: Any, b: Any, inner: Any) -> Factor:
    """B as `pack` makes it."""
    row = parallel(fn.target) * fn.target.vector_bytes
    return Factor(b, fn.integer(row), (inner + (_ALIGNED - 1)) / _ALIGNED * (_ALIGNED * row))


def _choose(fn: Any, condition: Any, x: Factor, y: Factor) -> Factor:
    return Factor(*[fn.select(condition, one, other) for one, other in zip(x, y, strict=True)])


def packed_shape(columns: int, inner: int, itemsize: int, made_for: Any = None) -> tuple[int, int, int]:
    """The shape of B (inner, columns) as `pack` makes it; made_for: another target than this processor."""
    made_for = target() if made_for is None else made_for
    wide = parallel(made_for) * made_for.vector_bytes // itemsize
    return -(-columns // wide), -(-inner // _ALIGNED) * _ALIGNED, wide


@kernel("products", "Rwiii", multiple=4)
def pack(
    fn: Any, b: Any, panels: Any, columns: Any, inner: Any, turned: Any, start: Any, stop: Any, scratch: Any
) -> None:
    """The panels of B (inner, columns), or of its transpose (columns, inner) where `turned`; items: panels."""
    size = fn.size
    group, wide = GROUP // size, parallel(fn.target) * fn.lanes
    bytes_of_panel = _packed(fn, panels, inner).panel
    end = smaller(fn, stop * wide, columns)
    with fn.loop(start * wide, end, group) as j:
        own, to = smaller(fn, end - j, fn.integer(group)), panels + j / wide * bytes_of_panel
        with fn.when_else(turned != 0) as (transposed, straight):
            with transposed:
                copy_transposed(fn, own, inner, b + j * inner * size, inner * size, to, bytes_of_panel)
            with straight:
                copy_columns(fn, own, inner, b + j * size, columns * size, to, bytes_of_panel)


@kernel("products", "rRRwiiii", multiple=4, enough=_ENOUGH)
def forward(
    fn: Any, x: Any, weight: Any, bias: Any, z: Any, inputs: Any, outputs: Any, packed: Any, relu: Any, start: Any,
    stop: Any, scratch: Any,
) -> None:  # fmt: skip
    """z = x W^T + bias, or its relu; items: rows of x (n, inputs) and of z (n, outputs).

    weight: (outputs, inputs), or the panels of its transpose.
    """
    size = fn.size
    b = _choose(fn, packed != 0, _packed(fn, weight, inputs), Factor(weight, inputs * size, fn.integer(TURNED)))
    multiply(fn, x, inputs * size, size, b, outputs, inputs, z, outputs * size, bias, relu * RELU, start, stop, scratch)


@kernel("products", "RrrWiiii")
def forward_few(
    fn: Any, x: Any, weight: Any, bias: Any, z: Any, inputs: Any, outputs: Any, rows: Any, relu: Any, start: Any,
    stop: Any, scratch: Any,
) -> None:  # fmt: skip
    """Like `forward`, for few rows of x, without a copy of W: the items are columns of z (rows, outputs)."""
    size, row = fn.size, inputs * fn.size
    with fn.loop(start, stop) as j:
        w = weight + j * row
        added = fn.variable(fn.constant(0))
        with fn.when(bias != 0):
            added.set(fn.load(bias + j * size, fn.real))

        def dots(i: Any, count: int, w: Any = w, j: Any = j, added: Any = added) -> None:
            for r, total in enumerate(_dots(fn, x + i * row, row, count, w, inputs)):
                y = total + added.get()
                y = fn.select((relu != 0) & (y <= 0), 0, y)
                fn.store(y, z + ((i + r) * outputs + j) * size)

        whole = rows - (rows & 3)
        with fn.loop(0, whole, 4) as i:
            dots(i, 4)
        with fn.loop(whole, rows) as i:
            dots(i, 1)


def _dots(fn: Any, x: Any, row: Any, count: int, w: Any, length: Any) -> list[Any]:
    """The products of so many rows with w: a partial sum for each of the numbers in 64 bytes, then these in pairs."""
    size, width, vectors, step = fn.size, fn.target.vector_bytes, _DOT // fn.target.vector_bytes, _DOT // fn.size
    zero = fn.vector(0)
    sums = [[fn.variable(zero) for _ in range(vectors)] for _ in range(count)]

    def add(k: Any, masks: list[Any]) -> None:
        factor = [fn.load(w + k * size + v * width, mask=masks[v]) for v in range(vectors)]
        for r, total in enumerate(sums):
            for v, y in enumerate(factor):
                other = fn.load(x + row * r + k * size + v * width, mask=masks[v])
                total[v].set(fn.fma(other, y, total[v].get()))

    whole = length - length % step
    with fn.loop(0, whole, step) as k:
        add(k, [None] * vectors)
    with fn.when(whole < length):
        add(whole, [fn.first_lanes(length - whole - v * fn.lanes) for v in range(vectors)])
    return [_sum_in_halves(fn, [x.get() for x in total]) for total in sums]


def _sum_in_halves(fn: Any, vectors: list[Any]) -> Any:
    """The sum of all elements: the first half plus the second, again and again."""
    while len(vectors) > 1:
        half = len(vectors) // 2
        vectors = [x + y for x, y in zip(vectors[:half], vectors[half:], strict=True)]
    x, n = vectors[0], fn.lanes
    while n > 1:
        n //= 2
        x = x + fn.shuffle(x, x, [(i + n) % fn.lanes for i in range(fn.lanes)])
    return x.lane(0)


def _by_rows(fn: Any, b: Any, form: Any, columns: Any, inner: Any) -> Factor:
    """B (inner, columns), or its panels: see `PACKED`."""
    panel = fn.select(form == COPIED, STRAIGHT, fn.integer(parallel(fn.target) * fn.target.vector_bytes))
    return _choose(fn, form == PACKED, _packed(fn, b, inner), Factor(b, columns * fn.size, panel))


@kernel("products", "rrwRwiii", multiple=4, enough=_ENOUGH)
def backward_rows(
    fn: Any, g: Any, out: Any, masked: Any, weight: Any, gx: Any, outputs: Any, inputs: Any, form: Any, start: Any,
    stop: Any, scratch: Any,
) -> None:  # fmt: skip
    """masked = g where out is not 0, else 0, if out is given; gx = masked (or g) W, if gx is given; items: rows.

    weight: (outputs, inputs), or its panels.
    """
    size = fn.size
    with fn.when(out != 0):

        def mask(i: Any, lanes: Any) -> None:
            x, y = fn.load(g + i * size, mask=lanes), fn.load(out + i * size, mask=lanes)
            fn.store(fn.select(y != 0, x, 0), masked + i * size, lanes)

        fn.each(start * outputs, stop * outputs, mask)
    with fn.when(gx != 0):
        a, b = fn.select(out != 0, masked, g), _by_rows(fn, weight, form, inputs, outputs)
        multiply(fn, a, outputs * size, size, b, inputs, outputs, gx, inputs * size, 0, 0, start, stop, scratch)


@kernel("products", "RRwwiiii", multiple=4, enough=_ENOUGH)
def backward_outputs(
    fn: Any, g: Any, x: Any, gw: Any, gb: Any, rows: Any, outputs: Any, inputs: Any, form: Any, start: Any,
    stop: Any, scratch: Any,
) -> None:  # fmt: skip
    """gw = g^T x, if given; gb = the sums of g's columns, if given; items: the columns of g (rows, outputs).

    x: (rows, inputs), or its panels.
    """
    size = fn.size
    with fn.when(gb != 0):
        _sum_columns(fn, g, rows, outputs, gb, start, stop)
    with fn.when(gw != 0):
        b = _by_rows(fn, x, form, inputs, rows)
        multiply(fn, g, size, outputs * size, b, inputs, rows, gw, inputs * size, 0, 0, start, stop, scratch)


@kernel("products", "RiiRiiRWiiii", multiple=64)
def by_columns(
    fn: Any, a: Any, a_row: Any, a_step: Any, b: Any, b_row: Any, turned: Any, bias: Any, c: Any, rows: Any,
    columns: Any, inner: Any, relu: Any, start: Any, stop: Any, scratch: Any,
) -> None:  # fmt: skip
    """c = a b + bias, or its relu, to the bit as the other kernels; items: columns of b and of c (rows, columns).

    Parts of b are copied into scratch, so that b is not copied as a whole. b_row: bytes from a row of b to the next;
    where b is `turned`, from a column.
    """
    size = fn.size
    first = start * fn.select(turned != 0, b_row, fn.integer(size))
    factor = Factor(b + first, b_row, fn.select(turned != 0, fn.integer(TURNED), fn.integer(STRAIGHT)))
    added = fn.select(bias != 0, bias + start * size, fn.integer(0))
    multiply(
        fn, a, a_row, a_step, factor, stop - start, inner, c + start * size, columns * size, added, relu * RELU,
        fn.integer(0), rows, scratch,
    )  # fmt: skip


@kernel("products", "RiiRWiii", multiple=64)
def by_few(
    fn: Any, a: Any, a_row: Any, a_step: Any, b: Any, c: Any, rows: Any, columns: Any, inner: Any, start: Any,
    stop: Any, scratch: Any,
) -> None:  # fmt: skip
    """c = a b for few rows of a, which reads b (inner, columns) once; the bits are those of tiles; items: columns."""
    size, row = fn.size, columns * fn.size
    with fn.loop(start, stop, _FEW // size) as first, fn.loop(0, inner, BLOCK // size) as block:
        end, last = smaller(fn, first + _FEW // size, stop), smaller(fn, block + BLOCK // size, inner)

        def add(k: Any, count: int, first: Any = first, end: Any = end, block: Any = block) -> None:
            with fn.loop(0, rows) as i:
                at = a + i * a_row + k * a_step
                factors = [fn.vector(fn.load(at + q * a_step, fn.real)) for q in range(count)]
                sums, source = scratch + i * _FEW, b + k * row

                def step(j: Any, mask: Any) -> None:
                    place = sums + (j - first) * size
                    total = fn.select(k > block, fn.load(place), 0)
                    for q, x in enumerate(factors):
                        total = fn.fma(x, fn.load(source + q * row + j * size, mask=mask), total)
                    fn.store(total, place)

                fn.each(first, end, step)

        whole = last - (last - block) % _TERMS
        with fn.loop(block, whole, _TERMS) as k:
            add(k, _TERMS)
        with fn.loop(whole, last) as k:
            add(k, 1)

        with fn.loop(0, rows) as i:

            def keep(j: Any, mask: Any, i: Any = i, first: Any = first, block: Any = block) -> None:
                total, place = fn.load(scratch + i * _FEW + (j - first) * size), c + i * row + j * size
                before = fn.load(place, mask=mask)
                fn.store(fn.select(block > 0, before + total, total), place, mask)

            fn.each(first, end, keep)


def _general(name: str, access: str, flags: int) -> Any:
    @kernel("products", access, multiple=4, name=name)
    def product(
        fn: Any, a: Any, a_row: Any, a_step: Any, b: Any, b_row: Any, turned: Any, c: Any, columns: Any, inner: Any,
        start: Any, stop: Any, scratch: Any,
    ) -> None:  # fmt: skip
        direct = fn.integer(parallel(fn.target) * fn.target.vector_bytes)
        factor = Factor(b, b_row, fn.select(turned != 0, fn.integer(TURNED), direct))
        multiply(fn, a, a_row, a_step, factor, columns, inner, c, columns * fn.size, 0, flags, start, stop, scratch)

    return product


product = _general("product", "RiiRiiwii", 0)
"""c = a b; items: rows. The strides of a and b are any, in bytes; where b is `turned`, its columns are contiguous."""
added_product = _general("added_product", "RiiRiiuii", ADD)
"""c += a b, like `product`."""


def _sum_columns(fn: Any, g: Any, rows: Any, columns: Any, total: Any, start: Any, stop: Any) -> None:
    """total[start:stop] = the sums of these columns of g (rows, columns)."""
    size, width, row = fn.size, fn.target.vector_bytes, columns * fn.size

    def sums(at: Any, vectors: int, masks: list[Any]) -> list[Any]:
        zero = fn.vector(0)
        totals = [fn.variable(zero) for _ in range(vectors)]
        with fn.loop(0, rows, _SUMMED) as first:
            chains = [[fn.variable(zero) for _ in range(vectors)] for _ in range(4)]
            stop = smaller(fn, first + _SUMMED, rows)
            whole = stop - ((stop - first) & 3)

            def add(r: Any, chain: list[Any]) -> None:
                for j in range(vectors):
                    chain[j].set(chain[j].get() + fn.load(at + r * row + j * width, mask=masks[j]))

            with fn.loop(first, whole, 4) as r:
                for i in range(4):
                    add(r + i, chains[i])
            with fn.loop(whole, stop) as r:
                add(r, chains[0])
            for j in range(vectors):
                a, b, c, d = (chain[j].get() for chain in chains)
                totals[j].set(totals[j].get() + ((a + b) + (c + d)))
        return [x.get() for x in totals]

    pair = 2 * fn.lanes
    whole = stop - (stop - start) % pair
    with fn.loop(start, whole, pair) as j:
        for i, x in enumerate(sums(g + j * size, 2, [None, None])):
            fn.store(x, total + j * size + i * width)
    with fn.loop(whole, stop, fn.lanes) as j:
        mask = fn.first_lanes(stop - j)
        fn.store(sums(g + j * size, 1, [mask])[0], total + j * size, mask)
