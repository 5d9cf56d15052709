"""Code for the rows of a matrix that need their maximum or sums, written once for narrow and wide matrices.

In a narrow matrix, a vector holds a column of several rows: nothing is wasted where rows are shorter than a vector, and
a logarithm is that of several rows. In a wide one, a vector holds several columns of a row. The numbers of a row are
added in an order that depends only on how many they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir

from gradflow_numpy.native.emit import F32, I32, I64, Function, Value, Variable
from gradflow_numpy.native.formulas import exp, log
from gradflow_numpy.native.sums import across

NARROW = 32
"""The largest number of columns of a narrow matrix."""
_BYTES = 64  # of a vector of columns, whatever the processor has, so that sums are the same


def each_row(
    fn: Function, columns: Value, start: Value, stop: Value, scratch: Value, work: Callable[[Rows], None]
) -> None:
    """The code of `work` for the rows start to stop of matrices with so many columns."""
    with fn.when_else(columns <= NARROW) as (narrow, wide):
        with narrow, fn.loop(start, stop, fn.lanes) as row:
            work(_SeveralRows(fn, columns, row, stop, scratch))
        with wide, fn.loop(start, stop) as row:
            work(_OneRow(fn, columns, row))


class Columns(NamedTuple):
    """A column of several rows, or several columns of a row.

    numbers: their numbers. at: the first one. mask: which of them exist, or None if all do.
    """

    numbers: Value
    at: Value
    mask: Any


class Rows:
    """Some rows. `lanes`: the numbers in a vector of columns. Matrices and arrays are given by address."""

    def __init__(self, fn: Function, columns: Value, lanes: int) -> None:
        self.fn, self.columns, self.lanes = fn, columns, lanes
        self.integer = I32 if fn.real == F32 else I64  # of the size of `real`

    def each(self, body: Callable[[Columns], None]) -> None:
        """The code of a loop over the columns."""
        raise NotImplementedError

    def load(self, matrix: Value, c: Columns, fill: float = 0.0) -> Value:
        """The numbers of columns; `fill` where there is no column."""
        raise NotImplementedError

    def store(self, value: Value, matrix: Value, c: Columns) -> None:
        raise NotImplementedError

    def keep(self, value: Value, matrix: Value, c: Columns) -> None:
        """Keep numbers for `kept`, in any place or in a matrix whose columns are stored later."""
        raise NotImplementedError

    def kept(self, matrix: Value, c: Columns) -> Value:
        raise NotImplementedError

    def read(self, array: Value, kind: Any = None, step: Any = 1) -> Value:
        """The element for each row of an array of a type, by default `real`; `step`: from one row's to the next."""
        raise NotImplementedError

    def write(self, value: Value, array: Value) -> None:
        """Write the element for each row of an array."""
        raise NotImplementedError

    def across(self, value: Value, combine: Callable[[Value, Value], Value]) -> Value:
        """The numbers of several columns of a row, combined."""
        raise NotImplementedError

    # ------------------------------------------------------------------ of these

    def variable(self, value: float) -> Variable:
        return self.fn.variable(self.fn.constant(value).splat(self.lanes))

    def total(self, variable: Variable) -> Value:
        """The sum over all columns of what was added to a variable with `add`."""
        return self.across(variable.get(), lambda x, y: x + y)

    def add(self, value: Value, variable: Variable, c: Columns) -> None:
        known = value if c.mask is None else self.fn.select(c.mask, value, 0.0)
        variable.set(variable.get() + known)

    def maximum(self, matrix: Value) -> Value:
        """The maximum of each row; NaN does not count."""
        top = self.variable(float("-inf"))

        def larger(x: Value, y: Value) -> Value:
            return self.fn.select(x > y, x, y)

        self.each(lambda c: top.set(larger(self.load(matrix, c, float("-inf")), top.get())))
        return self.across(top.get(), larger)

    def softmax(
        self, matrix: Value, out: Value, also: Callable[[Value, Columns], None] | None = None
    ) -> tuple[Value, Value]:
        """Write the softmax of each row; returns its maximum, and log(sum(exp(row - maximum))).

        also: gets row - maximum for each column. A row with NaN or with an infinite maximum becomes NaN.
        """
        top, total = self.maximum(matrix), self.variable(0.0)

        def exponentiate(c: Columns) -> None:
            shifted = self.load(matrix, c, float("-inf")) - top
            e = exp(self.fn, shifted)
            self.keep(e, out, c)
            self.add(e, total, c)
            if also is not None:
                also(shifted, c)

        self.each(exponentiate)
        whole = self.total(total)
        inverse = 1.0 / whole
        self.each(lambda c: self.store(self.kept(out, c) * inverse, out, c))
        return top, log(self.fn, whole)


class _SeveralRows(Rows):
    """Rows of a narrow matrix, one in each lane. At the end, further lanes repeat the last row: they write the same."""

    def __init__(self, fn: Function, columns: Value, first: Value, stop: Value, scratch: Value) -> None:
        super().__init__(fn, columns, fn.lanes)
        self._kept = scratch
        last = stop - 1
        self._rows = [fn.select(first + k < stop, first + k, last) for k in range(self.lanes)]

    def each(self, body: Callable[[Columns], None]) -> None:
        with self.fn.loop(0, self.columns) as j:
            body(Columns(j.as_integer(self.integer).splat(self.lanes), j, None))

    def _places(self, matrix: Value, c: Columns) -> list[Value]:
        return [matrix + (row * self.columns + c.at) * self.fn.size for row in self._rows]

    def load(self, matrix: Value, c: Columns, fill: float = 0.0) -> Value:
        return self._gathered(self._places(matrix, c), self.fn.real)

    def _gathered(self, places: list[Value], kind: Any) -> Value:
        vector = ir.Constant(ir.VectorType(kind, self.lanes), ir.Undefined)
        for k, place in enumerate(places):
            vector = self.fn.builder.insert_element(vector, self.fn.load(place, kind).ir, I32(k))
        return Value(self.fn, vector)

    def store(self, value: Value, matrix: Value, c: Columns) -> None:
        for k, place in enumerate(self._places(matrix, c)):
            self.fn.store(value.lane(k), place)

    def keep(self, value: Value, matrix: Value, c: Columns) -> None:
        self.fn.store(value, self._kept + c.at * self.fn.target.vector_bytes)

    def kept(self, matrix: Value, c: Columns) -> Value:
        return self.fn.load(self._kept + c.at * self.fn.target.vector_bytes)

    def read(self, array: Value, kind: Any = None, step: Any = 1) -> Value:
        kind = self.fn.real if kind is None else kind
        return self._gathered([array + row * step * (8 if kind == I64 else self.fn.size) for row in self._rows], kind)

    def write(self, value: Value, array: Value) -> None:
        for k, row in enumerate(self._rows):
            self.fn.store(value.lane(k), array + row * self.fn.size)

    def across(self, value: Value, combine: Callable[[Value, Value], Value]) -> Value:
        return value


class _OneRow(Rows):
    """A row of a wide matrix: the number for the row is a scalar."""

    def __init__(self, fn: Function, columns: Value, row: Value) -> None:
        super().__init__(fn, columns, _BYTES // fn.size)
        self._row = row
        self._start = row * columns
        self._vector = ir.VectorType(fn.real, self.lanes)

    def each(self, body: Callable[[Columns], None]) -> None:
        order = Value(self.fn, ir.Constant(ir.VectorType(self.integer, self.lanes), list(range(self.lanes))))
        with self.fn.loop(0, self.columns, self.lanes) as j:
            mask = self.fn.first_lanes(self.columns - j, self.lanes)
            body(Columns(j.as_integer(self.integer) + order, j, mask))

    def _place(self, matrix: Value, c: Columns) -> Value:
        return matrix + (self._start + c.at) * self.fn.size

    def _are_whole(self, c: Columns) -> Value:
        return self.columns - c.at >= self.lanes

    def load(self, matrix: Value, c: Columns, fill: float = 0.0) -> Value:
        found, place, mask = self.variable(0.0), self._place(matrix, c), c.mask
        with self.fn.when_else(self._are_whole(c)) as (whole, part):
            with whole:
                found.set(self.fn.load(place, self._vector))
            with part:
                found.set(self.fn.select(mask, self.fn.load(place, self._vector, mask), fill))
        return found.get()

    def store(self, value: Value, matrix: Value, c: Columns) -> None:
        place = self._place(matrix, c)
        with self.fn.when_else(self._are_whole(c)) as (whole, part):
            with whole:
                self.fn.store(value, place)
            with part:
                self.fn.store(value, place, c.mask)

    keep = store

    def kept(self, matrix: Value, c: Columns) -> Value:
        return self.load(matrix, c)

    def read(self, array: Value, kind: Any = None, step: Any = 1) -> Value:
        kind = self.fn.real if kind is None else kind
        return self.fn.load(array + self._row * step * (8 if kind == I64 else self.fn.size), kind)

    def write(self, value: Value, array: Value) -> None:
        self.fn.store(value, array + self._row * self.fn.size)

    def across(self, value: Value, combine: Callable[[Value, Value], Value]) -> Value:
        return across(value, combine)
