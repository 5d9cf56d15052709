"""Matrix products in tiles, which the kernels of `products` are made of.

C = A B is computed in tiles of 6 rows by a few vectors, which stay in registers while k runs (Goto and van de Geijn
2008, "Anatomy of high-performance matrix multiplication"). Each element of C is a sequential sum by `fma` over a block
of k, starting at 0; these sums are added one after another. So its bits depend neither on the width of vectors nor on
the tiles, the copies, or who computes which rows; and the error grows with the length of a block plus their number.

Strides are in bytes. A may have any strides. The rows of B and of C are contiguous.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from gradflow_numpy.native.kernels import SCRATCH

BLOCK = 2048
"""The bytes of a block of k: 512 numbers of float32, 256 of float64."""
_ROWS = 256
"""Rows of A at a time, so that their part of a block stays in the second-level cache."""
GROUP = 512
"""The bytes of columns of B that are copied at a time."""
_LINE = 64
"""The bytes of a line of the cache."""
_AHEAD = 4
"""How many rows ahead a copy asks for memory: rows are too short, and too far apart, for the processor to foresee."""
_TILE = 6
_CHUNK = 48
ADD, RELU = 1, 2
"""What a product does to the elements of C: add to them, rather than set them; relu in the end."""
_A_BYTES = SCRATCH // 8 * 5
"""Of the scratch: A's rows in pairs, then B's columns."""


def parallel(target: Any) -> int:
    """How many vectors wide a tile is."""
    return 2 if target.registers <= 16 else 4


class _Matrix(NamedTuple):
    """A[i, k] of A's rows is at `at` + i // 2 * `pair` + i % 2 * `row` + k * `step`."""

    at: Any
    pair: Any
    row: Any
    step: Any


def _function(fn: Any, name: str, count: int) -> tuple[Any, bool]:
    """The internal function of a name with so many 64-bit integers, and whether it is new and has no code yet."""
    from gradflow_numpy.native import emit

    known = fn.module.globals.get(name)
    if known is not None:
        return None, False
    made = emit.Function(fn.module, name, [emit.I64] * count, fn.real, fn.target)
    made.function.linkage = "internal"
    made.function.attributes.add("noinline")
    return made, True


def _call(fn: Any, name: str, *values: Any) -> None:
    from llvmlite import ir

    fn.call(name, ir.VoidType(), *[x if hasattr(x, "ir") else fn.integer(x) for x in values])


def smaller(fn: Any, x: Any, y: Any) -> Any:
    """The smaller one of two integers."""
    return fn.select(x < y, x, y)


# ---------------------------------------------------------------------- a panel: some rows by a few vectors


def _tile(fn: Any, rows: int, vectors: int, a: _Matrix, b: Any, b_row: Any, length: Any, finish: Any) -> None:
    """A tile of C: A's `rows` rows times `vectors` vectors of B's, over `length` steps; `finish(sums)` stores it."""
    zero = fn.vector(0)
    sums = [[fn.variable(zero) for _ in range(vectors)] for _ in range(rows)]
    starts = [a.at + a.pair * (i // 2) + a.row * (i % 2) for i in range(rows)]
    offset, line = fn.variable(fn.integer(0)), fn.variable(b)
    end = b + length * b_row
    with fn.repeat_while(lambda: line.get() < end):  # not a count: unrolled, there would be too many addresses
        i, at = offset.get(), line.get()
        row = [fn.load(at + j * fn.target.vector_bytes) for j in range(vectors)]
        for start, total in zip(starts, sums, strict=True):
            x = fn.vector(fn.load(start + i, fn.real))
            for j in range(vectors):
                total[j].set(fn.fma(x, row[j], total[j].get()))
        offset.set(i + a.step)
        line.set(at + b_row)
    finish(sums)


def _panel(fn: Any, vectors: int) -> str:
    """The function for a panel of C of so many vectors, the last of which may be narrower: all of its rows."""
    name = f"panel_{vectors}"
    made, new = _function(fn, name, 13)
    if new:
        _emit_panel(made, vectors)
        made.finish()
    return name


def _emit_panel(fn: Any, vectors: int) -> None:
    rows, a_at, pair, row, step, b, b_row, length, c, c_row, columns, bias, flags = fn.parameters
    left, start, out = fn.variable(rows), fn.variable(a_at), fn.variable(c)
    last = columns - (vectors - 1) * fn.lanes
    width = fn.target.vector_bytes

    def store(sums: list[list[Any]], mask: Any) -> None:
        masks = [None] * (vectors - 1) + [mask]
        at = [out.get() + c_row * i for i in range(len(sums))]

        def change(by: Any) -> None:
            for i, total in enumerate(sums):
                for j, x in enumerate(total):
                    x.set(by(x.get(), i, j))

        with fn.when((flags & ADD) != 0):
            change(lambda x, i, j: fn.load(at[i] + j * width, mask=masks[j]) + x)
        with fn.when(bias != 0):
            added = [fn.load(bias + j * width, mask=masks[j]) for j in range(vectors)]
            change(lambda x, i, j: x + added[j])
        with fn.when((flags & RELU) != 0):
            change(lambda x, i, j: fn.select(x <= 0, 0, x))  # NaN stays
        for i, total in enumerate(sums):
            for j, x in enumerate(total):
                fn.store(x.get(), at[i] + j * width, masks[j])

    def finish(sums: list[list[Any]]) -> None:
        with fn.when_else(last >= fn.lanes) as (full, narrow):
            with full:
                store(sums, None)
            with narrow:
                store(sums, fn.first_lanes(last))

    def tile(height: int) -> None:
        at = start.get()
        _tile(fn, height, vectors, _Matrix(at, pair, row, step), b, b_row, length, finish)
        start.set(at + pair * (height // 2))
        out.set(out.get() + c_row * height)
        left.set(left.get() - height)

    with fn.repeat_while(lambda: (left.get() >= _TILE) & (left.get() != 8)):  # 8 = 4 + 4
        tile(_TILE)
    with fn.repeat_while(lambda: left.get() >= 4):
        tile(4)
    with fn.when(left.get() >= 2):
        tile(2)
    with fn.when(left.get() == 1):
        tile(1)


# ---------------------------------------------------------------------- copies


def _copy_rows(fn: Any, rows: Any, length: Any, a: _Matrix, to: Any, pair: Any) -> None:
    """Copy A's rows in pairs, the steps of k one after another: see `_Matrix`. An odd row is its own partner.

    The rows or the steps of A are contiguous.
    """
    from llvmlite import ir

    size, width = fn.size, fn.target.vector_bytes
    with fn.when_else(a.step == size) as (by_rows, by_steps):
        with by_rows, fn.loop(0, rows, 2) as i:
            one = a.at + i * a.row
            other = fn.select(i + 1 < rows, one + a.row, one)
            out = to + (i >> 1) * pair

            def interleave(k: Any, mask: Any, one: Any = one, other: Any = other, out: Any = out) -> None:
                x, y = fn.load(one + k * size, mask=mask), fn.load(other + k * size, mask=mask)
                n = fn.lanes
                order = [lane for i in range(n) for lane in (i, n + i)]
                fn.store(fn.shuffle(x, y, order[:n]), out + k * (2 * size))
                fn.store(fn.shuffle(x, y, order[n:]), out + k * (2 * size) + width)

            fn.each(fn.integer(0), length, interleave)
        with by_steps:
            whole = rows - (rows & 1)
            both = ir.VectorType(fn.real, 2)
            with fn.loop(0, length) as k:
                one, out = a.at + k * a.step, to + k * (2 * size)
                with fn.loop(0, whole, 2) as i:
                    fn.store(fn.load(one + i * size, both), out + (i >> 1) * pair)
                with fn.when(whole < rows):
                    x = fn.load(one + whole * size, fn.real)
                    fn.store(x, out + (whole >> 1) * pair)


def _prefetch(fn: Any, address: Any) -> None:
    """Ask for the line of the cache at an address, which need not exist."""
    from llvmlite import ir

    from gradflow_numpy.native.emit import I32

    kind = [fn.constant(i, I32) for i in (0, 3, 1)]  # to read, near the core, data
    fn.call("llvm.prefetch.p0", ir.VoidType(), fn.pointer(address), *kind)


def copy_columns(fn: Any, columns: Any, length: Any, b: Any, b_row: Any, to: Any, panel: Any) -> None:
    """Copy columns of B into panels, one row of a panel after another, and zeros up to whole vectors."""
    size, width = fn.size, fn.target.vector_bytes
    across = parallel(fn.target)
    wide = across * fn.lanes
    edge, whole = columns - columns % wide, columns - columns % fn.lanes
    with fn.loop(0, length) as k:
        source, out = b + k * b_row, fn.variable(to + k * (across * width))
        with fn.loop(0, columns * size, _LINE) as i:
            _prefetch(fn, source + b_row * _AHEAD + i)
        with fn.loop(0, edge, wide) as j:
            for v in range(across):
                fn.store(fn.load(source + j * size + v * width), out.get() + v * width)
            out.set(out.get() + panel)
        with fn.loop(edge, whole, fn.lanes) as j:
            fn.store(fn.load(source + j * size), out.get() + (j - edge) * size)
        with fn.when(whole < columns):
            mask = fn.first_lanes(columns - whole)
            fn.store(fn.load(source + whole * size, mask=mask), out.get() + (whole - edge) * size)


def copy_transposed(fn: Any, columns: Any, length: Any, b: Any, b_column: Any, to: Any, panel: Any) -> None:
    """Copy columns of B that are rows in memory, like `copy_columns`; and zeros up to whole vectors of k."""
    size, n, wide = fn.size, fn.lanes, parallel(fn.target) * fn.lanes
    with fn.loop(0, columns, n) as j:
        out, source = to + j / wide * panel + j % wide * size, b + j * b_column

        def transpose(k: Any, left: Any = None, j: Any = j, out: Any = out, source: Any = source) -> None:
            rows = []
            for i in range(n):
                mask = None if left is None else fn.first_lanes(fn.select(j + i < columns, left, 0))
                rows.append(fn.load(source + b_column * i + k * size, mask=mask))
            for i, x in enumerate(_transposed(fn, rows)):
                fn.store(x, out + (k + i) * (wide * size))

        whole = fn.select(j + n <= columns, length - length % n, fn.integer(0))
        with fn.loop(0, whole, n) as k:
            for i in range(n, 2 * n):
                _prefetch(fn, source + b_column * i + k * size)
            transpose(k)
        with fn.loop(whole, length, n) as k:
            transpose(k, length - k)


def _transposed(fn: Any, rows: list[Any]) -> list[Any]:
    """A square of vectors, transposed by shuffles that most processors have."""
    n, part = len(rows), 16 // fn.size
    d = n // 2
    while d >= part:  # exchange squares of d
        for i in (i for i in range(n) if not i & d):
            x, y = rows[i], rows[i + d]
            rows[i] = fn.shuffle(x, y, [n + lane - d if lane & d else lane for lane in range(n)])
            rows[i + d] = fn.shuffle(x, y, [n + lane if lane & d else lane + d for lane in range(n)])
        d //= 2
    low = [i // part * part + i % part // 2 + i % 2 * n for i in range(n)]
    high = [lane + part // 2 for lane in low]
    for _ in range(part.bit_length() - 1):  # interleave, in parts of 16 bytes
        pairs = [(q + i, q + i + part // 2) for q in range(0, n, part) for i in range(part // 2)]
        rows = [fn.shuffle(rows[x], rows[y], order) for x, y in pairs for order in (low, high)]
    return rows


# ---------------------------------------------------------------------- products


class Factor(NamedTuple):
    """B's rows are `row` apart, its panels `panel`; or `panel` is one of the following, and parts of B are copied."""

    at: Any
    row: Any
    panel: Any


TURNED, STRAIGHT = 0, -1
"""Instead of the bytes of a panel: B's columns are contiguous and `row` apart; its rows are."""


def multiply(
    fn: Any, a: Any, a_row: Any, a_step: Any, b: Factor, columns: Any, inner: Any, c: Any, c_row: Any, bias: Any,
    flags: Any, start: Any, stop: Any, scratch: Any,
) -> None:  # fmt: skip
    """C[start:stop] = A[start:stop] B, C's rows `c_row` apart; inner: the length of the sums."""
    made, new = _function(fn, "multiply", 15)
    if new:
        _emit_product(made)
        made.finish()
    _call(fn, "multiply", a, a_row, a_step, *b, columns, inner, c, c_row, bias, flags, start, stop, scratch)


def _emit_product(fn: Any) -> None:
    a, a_row, a_step, b_at, b_row, b_panel, columns, inner, c, c_row, bias, flags, start, stop, scratch = fn.parameters
    size, across = fn.size, parallel(fn.target)
    block, group, wide = BLOCK // size, GROUP // size, across * fn.lanes
    own_panel, own_row = (block + fn.lanes) * wide * size, fn.integer(wide * size)
    b_copied = scratch + _A_BYTES
    copies_a = (columns >= 256) & ((a_step == size) | (a_row == size))
    turned, straight = b_panel == TURNED, b_panel == STRAIGHT
    is_copied = turned | straight

    with fn.loop(0, fn.select(inner < 1, 1, inner), block) as k:  # once for no k, which sets C to 0
        length = smaller(fn, inner - k, fn.integer(block))
        is_last = k + block >= inner
        added = fn.select(is_last, bias, fn.integer(0))
        own_flags = fn.select(k > 0, ADD, flags & ADD) | fn.select(is_last, flags & RELU, fn.integer(0))
        with fn.loop(start, stop, _ROWS) as i:
            rows = smaller(fn, stop - i, fn.integer(_ROWS))
            at = a + i * a_row + k * a_step
            pair = length * (2 * size) + 2 * fn.target.vector_bytes
            with fn.when(copies_a):
                _copy_rows(fn, rows, length, _Matrix(at, None, a_row, a_step), scratch, pair)
            direct = _Matrix(at, a_row * 2, a_row, a_step)
            copied = _Matrix(scratch, pair, fn.integer(size), fn.integer(2 * size))
            matrix = _Matrix(*[fn.select(copies_a, x, y) for x, y in zip(copied, direct, strict=True)])
            with fn.loop(0, columns, group) as j:
                own = smaller(fn, columns - j, fn.integer(group))
                whole = own - own % fn.lanes
                edge = own - own % wide
                panels = fn.select(straight, j * size, j / wide * b_panel)
                b = b_at + fn.select(turned, j * b_row + k * size, panels + k * b_row)
                copies_edge = (b_panel == own_row) & (whole < own)
                with fn.when(turned):
                    copy_transposed(fn, own, length, b, b_row, b_copied, fn.integer(own_panel))
                with fn.when(straight):
                    copy_columns(fn, own, length, b, b_row, b_copied, fn.integer(own_panel))
                with fn.when(copies_edge):
                    copy_columns(fn, own - edge, length, b + edge * size, b_row, b_copied, fn.integer(0))
                with fn.loop(0, rows, _CHUNK) as r, fn.loop(0, own, wide) as p:
                    n = smaller(fn, own - p, fn.integer(wide))
                    at_edge = copies_edge & (p == edge)
                    panel = fn.select(is_copied, b_copied + p / wide * own_panel, b + p / wide * b_panel)
                    values = (
                        smaller(fn, rows - r, fn.integer(_CHUNK)), matrix.at + (r >> 1) * matrix.pair, *matrix[1:],
                        fn.select(at_edge, b_copied, panel), fn.select(is_copied | at_edge, own_row, b_row), length,
                        c + (i + r) * c_row + (j + p) * size, c_row, n,
                        fn.select(added != 0, added + (j + p) * size, fn.integer(0)), own_flags,
                    )  # fmt: skip
                    vectors = (n + (fn.lanes - 1)) / fn.lanes
                    for count in range(1, across + 1):
                        with fn.when(vectors == count):
                            _call(fn, _panel(fn, count), *values)
