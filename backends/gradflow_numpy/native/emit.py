"""What kernels are written in: a `Function` of LLVM IR under construction, and `Value`s with Python's operators.

Nothing is reassociated or contracted: what is computed is what is written, in this order, so that a number does not
depend on the width of vectors. `fma` is the only fused operation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from operator import index
from typing import Any, NamedTuple

from llvmlite import ir

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
POINTER = ir.PointerType()
_NAMES = {I8: "i8", I16: "i16", I32: "i32", I64: "i64", F16: "f16", F32: "f32", F64: "f64"}
_BITS = {F16: 16, F32: 32, F64: 64}


class Target(NamedTuple):
    """What the code is made for: the bytes of a vector register, and the number of vector registers."""

    vector_bytes: int
    registers: int


class Value:
    """A scalar or a vector: floats, integers, or booleans. Numbers and scalars become vectors where needed.

    Integers are signed, `//` and `%` of them round towards zero as in C, and `>>` fills with zeros.
    """

    __slots__ = ("fn", "ir")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, fn: Function, value: Any) -> None:
        self.fn = fn
        self.ir = value

    @property
    def type(self) -> Any:
        return self.ir.type

    @property
    def element(self) -> Any:
        """The type of the elements, or of the scalar."""
        return self.type.element if isinstance(self.type, ir.VectorType) else self.type

    def __bool__(self) -> bool:
        raise TypeError("a value is not known while code is emitted: use `when` or `select`")

    def _both(self, other: Any) -> tuple[Value, Value]:
        other = other if isinstance(other, Value) else self.fn.constant(other, self.element)
        if isinstance(self.type, ir.VectorType) and not isinstance(other.type, ir.VectorType):
            return self, other.splat(self.type.count)
        if isinstance(other.type, ir.VectorType) and not isinstance(self.type, ir.VectorType):
            return self.splat(other.type.count), other
        return self, other

    def splat(self, lanes: int) -> Value:
        """A vector of this scalar."""
        if isinstance(self.ir, ir.Constant):
            return Value(self.fn, ir.Constant(ir.VectorType(self.type, lanes), [self.ir] * lanes))
        b, vector = self.fn.builder, ir.VectorType(self.type, lanes)
        one = b.insert_element(ir.Constant(vector, ir.Undefined), self.ir, I32(0))
        order = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
        return Value(self.fn, b.shuffle_vector(one, ir.Constant(vector, ir.Undefined), order))

    def _binary(self, other: Any, of_floats: str, of_integers: str, swapped: bool = False) -> Value:
        x, y = self._both(other)
        if swapped:
            x, y = y, x
        name = of_floats if x.element in _BITS else of_integers
        return Value(self.fn, getattr(self.fn.builder, name)(x.ir, y.ir))

    def __add__(self, other: Any) -> Value:
        return self._binary(other, "fadd", "add")

    __radd__ = __add__

    def __sub__(self, other: Any) -> Value:
        return self._binary(other, "fsub", "sub")

    def __rsub__(self, other: Any) -> Value:
        return self._binary(other, "fsub", "sub", True)

    def __mul__(self, other: Any) -> Value:
        return self._binary(other, "fmul", "mul")

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Value:
        return self._binary(other, "fdiv", "sdiv")

    def __rtruediv__(self, other: Any) -> Value:
        return self._binary(other, "fdiv", "sdiv", True)

    def __floordiv__(self, other: Any) -> Value:
        return self._binary(other, "", "sdiv")

    def __mod__(self, other: Any) -> Value:
        return self._binary(other, "", "srem")

    def __lshift__(self, other: Any) -> Value:
        return self._binary(other, "", "shl")

    def __rshift__(self, other: Any) -> Value:
        return self._binary(other, "", "lshr")

    def __and__(self, other: Any) -> Value:
        return self._binary(other, "", "and_")

    def __or__(self, other: Any) -> Value:
        return self._binary(other, "", "or_")

    def __xor__(self, other: Any) -> Value:
        return self._binary(other, "", "xor")

    def __invert__(self) -> Value:
        return Value(self.fn, self.fn.builder.not_(self.ir))

    def __neg__(self) -> Value:
        if self.element in _BITS:
            return Value(self.fn, self.fn.builder.fneg(self.ir))
        return Value(self.fn, self.fn.builder.neg(self.ir))

    def _compare(self, other: Any, operator: str) -> Value:
        x, y = self._both(other)
        b = self.fn.builder
        if x.element not in _BITS:
            return Value(self.fn, b.icmp_signed(operator, x.ir, y.ir))
        compare = b.fcmp_unordered if operator == "!=" else b.fcmp_ordered  # NaN != NaN
        return Value(self.fn, compare(operator, x.ir, y.ir))

    def __lt__(self, other: Any) -> Value:
        return self._compare(other, "<")

    def __le__(self, other: Any) -> Value:
        return self._compare(other, "<=")

    def __gt__(self, other: Any) -> Value:
        return self._compare(other, ">")

    def __ge__(self, other: Any) -> Value:
        return self._compare(other, ">=")

    def __eq__(self, other: Any) -> Value:  # type: ignore[override]
        return self._compare(other, "==")

    def __ne__(self, other: Any) -> Value:  # type: ignore[override]
        return self._compare(other, "!=")

    def as_float(self, element: Any) -> Value:
        """Converted to a float type, from a signed integer, a boolean (0 or 1) or another float."""
        to, b = self._like(element), self.fn.builder
        if self.element == element:
            return self
        if self.element not in _BITS:
            return Value(self.fn, (b.uitofp if self.element == I1 else b.sitofp)(self.ir, to))
        widens = _BITS[element] > _BITS[self.element]
        return Value(self.fn, (b.fpext if widens else b.fptrunc)(self.ir, to))

    def as_integer(self, element: Any) -> Value:
        """Converted to an integer type, from a float (towards zero), a signed integer or a boolean (0 or 1)."""
        to, b = self._like(element), self.fn.builder
        if self.element == element:
            return self
        if self.element in _BITS:
            return Value(self.fn, b.fptosi(self.ir, to))
        if element.width < self.element.width:
            return Value(self.fn, b.trunc(self.ir, to))
        return Value(self.fn, (b.zext if self.element == I1 else b.sext)(self.ir, to))

    def as_unsigned(self, element: Any) -> Value:
        """An integer converted to a wider integer type, as an unsigned number."""
        return Value(self.fn, self.fn.builder.zext(self.ir, self._like(element)))

    def bits_as(self, element: Any) -> Value:
        """The same bits as another type of the same size."""
        return Value(self.fn, self.fn.builder.bitcast(self.ir, self._like(element)))

    def _like(self, element: Any) -> Any:
        return ir.VectorType(element, self.type.count) if isinstance(self.type, ir.VectorType) else element

    def lane(self, i: int) -> Value:
        """An element of a vector."""
        return Value(self.fn, self.fn.builder.extract_element(self.ir, I32(i)))


class Variable:
    """A value that loops change."""

    def __init__(self, fn: Function, value: Value) -> None:
        with fn.builder.goto_entry_block():
            self._slot = fn.builder.alloca(value.type)
        self._fn = fn
        self._type = value.type
        self.set(value)

    def get(self) -> Value:
        return Value(self._fn, self._fn.builder.load(self._slot, typ=self._type))

    def set(self, value: Value) -> None:
        self._fn.builder.store(value.ir, self._slot)


class Function:
    """A function of LLVM IR under construction.

    real: the floating-point type of its arrays, F32 or F64. target: what it is made for. parameters: its parameters as
    values. lanes: how many numbers of the type `real` a vector has. size: the bytes of one.
    """

    def __init__(
        self, module: ir.Module, name: str, types: list[Any], real: Any, target: Target, result: Any = None
    ) -> None:
        kind = ir.FunctionType(ir.VoidType() if result is None else result, types)
        self.function = ir.Function(module, kind, name)
        self.module = module
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        body = self.function.append_basic_block("body")  # `entry` is for variables
        self.builder.branch(body)
        self.builder.position_at_end(body)
        self.real = real
        self.size = _BITS[real] // 8
        self.target = target
        self.lanes = target.vector_bytes // self.size
        self.parameters = [Value(self, x) for x in self.function.args]

    # ------------------------------------------------------------------ values

    def constant(self, value: Any, element: Any = None) -> Value:
        """A scalar; by default of the type `real`."""
        element = self.real if element is None else element
        return Value(self, ir.Constant(element, float(value) if element in _BITS else index(value)))

    def integer(self, value: int) -> Value:
        return self.constant(value, I64)

    def vector(self, value: Any) -> Value:
        """A vector of a number or a scalar."""
        return (value if isinstance(value, Value) else self.constant(value)).splat(self.lanes)

    def variable(self, value: Value) -> Variable:
        return Variable(self, value)

    def select(self, condition: Value, x: Any, y: Any) -> Value:
        """x where the condition is true, else y."""
        like = x if isinstance(x, Value) else y
        x = x if isinstance(x, Value) else self.constant(x, like.element)
        x, y = x._both(y)
        if isinstance(condition.type, ir.VectorType) and not isinstance(x.type, ir.VectorType):
            x, y = x.splat(condition.type.count), y.splat(condition.type.count)
        return Value(self, self.builder.select(condition.ir, x.ir, y.ir))

    def shuffle(self, x: Value, y: Value, order: list[int]) -> Value:
        """A vector of elements of x (0, 1, ...) and of y (after those of x)."""
        indices = ir.Constant(ir.VectorType(I32, len(order)), order)
        return Value(self, self.builder.shuffle_vector(x.ir, y.ir, indices))

    # ------------------------------------------------------------------ functions of LLVM

    def intrinsic(self, name: str, *values: Any, result: Any = None) -> Value:
        """A call of an LLVM intrinsic, such as "sqrt", of values that become vectors if one of them is.

        result: the type of the result, if it is not that of the values.
        """
        given = [x for x in values if isinstance(x, Value)]
        widest = next((x for x in given if isinstance(x.type, ir.VectorType)), given[0])
        values = tuple(widest._both(x)[1] for x in values)
        kind = widest.type
        return self.call(f"llvm.{name}.{_suffix(kind)}", kind if result is None else result, *values)

    def call(self, name: str, result: Any, *values: Value) -> Value:
        """A call of a function by its whole name."""
        known = self.module.globals.get(name)
        if known is None:
            known = ir.Function(self.module, ir.FunctionType(result, [x.type for x in values]), name)
        return Value(self, self.builder.call(known, [x.ir for x in values]))

    def fma(self, x: Value, y: Any, z: Any) -> Value:
        """x * y + z, rounded once."""
        return self.intrinsic("fma", x, y, z)

    def any(self, mask: Value) -> Value:
        """Whether a lane of a vector of booleans is true."""
        bits = ir.IntType(mask.type.count)
        return Value(self, self.builder.icmp_unsigned("!=", self.builder.bitcast(mask.ir, bits), bits(0)))

    def sqrt(self, x: Value) -> Value:
        return self.intrinsic("sqrt", x)

    # ------------------------------------------------------------------ memory: addresses are integers

    def load(self, address: Value, kind: Any = None, mask: Value | None = None) -> Value:
        """The value of a type at an address (default: a vector of `real`); masked lanes are 0 and not read."""
        kind = ir.VectorType(self.real, self.lanes) if kind is None else kind
        pointer = self.pointer(address)
        if mask is None:
            element = kind.element if isinstance(kind, ir.VectorType) else kind
            return Value(self, self.builder.load(pointer.ir, align=_align(element), typ=kind))
        zero = self.constant(0, kind.element).splat(kind.count)
        align = self.constant(_align(kind.element), I32)
        return self.call(f"llvm.masked.load.{_suffix(kind)}.p0", kind, pointer, align, mask, zero)

    def store(self, value: Value, address: Value, mask: Value | None = None) -> None:
        """Write a value to an address, only its lanes in the mask."""
        pointer = self.pointer(address)
        if mask is None:
            self.builder.store(value.ir, pointer.ir, align=_align(value.element))
        else:
            align = self.constant(_align(value.element), I32)
            self.call(f"llvm.masked.store.{_suffix(value.type)}.p0", ir.VoidType(), value, pointer, align, mask)

    def pointer(self, address: Value) -> Value:
        """An address as LLVM's own functions take it."""
        return Value(self, self.builder.inttoptr(address.ir, POINTER))

    def first_lanes(self, n: Value, lanes: int | None = None) -> Value:
        """The mask of the first n lanes."""
        lanes = self.lanes if lanes is None else lanes
        order = Value(self, ir.Constant(ir.VectorType(I32, lanes), list(range(lanes))))
        return order < n.as_integer(I32)

    # ------------------------------------------------------------------ control

    @contextlib.contextmanager
    def loop(self, start: Any, stop: Any, step: Any = 1) -> Iterator[Value]:
        """The code of a loop over start, start + step, ... below stop: 64-bit integers. Yields the counter."""
        start, stop, step = (x if isinstance(x, Value) else self.integer(x) for x in (start, stop, step))
        b = self.builder
        head, body, done = (b.append_basic_block(name) for name in ("head", "loop", "done"))
        before = b.block
        b.branch(head)
        b.position_at_end(head)
        i = b.phi(I64)
        i.add_incoming(start.ir, before)
        b.cbranch(b.icmp_signed("<", i, stop.ir), body, done)
        b.position_at_end(body)
        yield Value(self, i)
        i.add_incoming(b.add(i, step.ir), b.block)
        b.branch(head)
        b.position_at_end(done)

    @contextlib.contextmanager
    def repeat_while(self, condition: Callable[[], Value]) -> Iterator[None]:
        """The code of a loop that runs while a condition, computed before each turn, is true."""
        b = self.builder
        head, body, done = (b.append_basic_block(name) for name in ("head", "loop", "done"))
        b.branch(head)
        b.position_at_end(head)
        b.cbranch(condition().ir, body, done)
        b.position_at_end(body)
        yield
        b.branch(head)
        b.position_at_end(done)

    @contextlib.contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Code that runs if a condition is true."""
        with self.builder.if_then(condition.ir):
            yield

    @contextlib.contextmanager
    def when_else(self, condition: Value) -> Iterator[tuple[Any, Any]]:
        """Two context managers, for the code that runs if a condition is true, and if it is false."""
        with self.builder.if_else(condition.ir) as both:
            yield both

    def each(
        self, start: Value, stop: Value, body: Callable[[Value, Value | None], None], lanes: int | None = None
    ) -> None:
        """The code for the elements start to stop, a vector at a time: `body(i, mask)`, with a mask at the end only."""
        lanes = self.lanes if lanes is None else lanes
        whole = stop - (stop - start) % lanes
        with self.loop(start, whole, lanes) as i:
            body(i, None)
        with self.when(whole < stop):
            body(whole, self.first_lanes(stop - whole, lanes))

    def finish(self, result: Value | None = None) -> None:
        """Return from the function, at the end of its code."""
        if result is None:
            self.builder.ret_void()
        else:
            self.builder.ret(result.ir)


def _suffix(kind: Any) -> str:
    if isinstance(kind, ir.VectorType):
        return f"v{kind.count}{_NAMES[kind.element]}"
    return _NAMES[kind]


def _align(element: Any) -> int:
    return int(_BITS.get(element) or element.width) // 8 or 1
