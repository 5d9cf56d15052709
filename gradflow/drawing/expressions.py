"""Expressions such as `(x + y) * z`: parsed, and computed with the operations of gradflow. Nothing is run as Python.

    program    = { NAME "=" sum ";" } [ NAME "=" ] sum
    sum        = product { ("+" | "-") product }
    product    = sign { ("*" | "/" | "@") sign }
    sign       = { "+" | "-" } power                       so -2^2 is -4
    power      = operand [ ("^" | "**") sign ]             so 2^3^2 is 2^9
    operand    = NUMBER | NAME | NAME "(" sum { "," sum } ")" | "(" sum ")"

A function is one of `gradflow.ops` that takes tensors; `max` and `min` of two arguments are `maximum` and `minimum`.
`parse` reads an expression with a stack of operators (Dijkstra 1961) into a list of instructions for a stack of values,
so no depth of parentheses is too deep.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from gradflow import ops
from gradflow.tensor import Tensor
from gradflow.text import did_you_mean

CONSTANTS = {"pi": math.pi, "e": math.e}
"""The constants. A value of the same name takes the place of one."""
LONGEST = 100_000
"""The most characters of an expression."""
LARGEST = 10_000
"""The most elements of a value, and the largest count that a function takes."""
_OTHER_NAMES = {
    "ln": "log(x)", "\N{GREEK SMALL LETTER SIGMA}": "sigmoid(x)", "sqr": "x^2", "pow": "x^2",
    "dot": "x @ y",
}  # fmt: skip
"""What is written here for functions that are called otherwise elsewhere."""
_OTHER_SIGNS = {
    "²": "x^2", "³": "x^3", "√": "sqrt(x)", "|": "abs(x)", "·": "x * y", "\N{MULTIPLICATION SIGN}": "x * y",
    "÷": "x / y",
    "\N{MINUS SIGN}": "x - y",
    "<": "relu(x), min(x, y) or max(x, y)", ">": "relu(x), min(x, y) or max(x, y)",
}  # fmt: skip
"""What is written here for characters of formulas."""

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)|(?P<name>[^\W\d]\w*)|(?P<sign>\*\*|[-+*/@^(),;=]))"
)
_EXACT = 15
"""Integers of so many digits are floats of the same value."""
_OPERATORS: dict[str, tuple[int, bool, str]] = {
    "+": (1, False, "add"), "-": (1, False, "subtract"), "*": (2, False, "multiply"), "/": (2, False, "divide"),
    "@": (2, False, "matmul"), "^": (4, True, "power"), "**": (4, True, "power"),
}  # fmt: skip
"""Of each operator, how tightly it binds, whether it groups from the right, and the function that computes it."""
_SIGN = 3
"""How tightly a sign before an operand binds."""


class ExpressionError(ValueError):
    """An expression cannot be parsed or computed; the message says, on one line, why and where."""


class Instruction(NamedTuple):
    """A step of a parsed expression, which takes values from a stack and puts one on it.

    kind: "number" or "name" (takes none), "call" (takes `arity`), or "assign" (leaves the value where it is).
    value: the number, or the name of the value or function. position: of the character where it stands.
    """

    kind: Literal["number", "name", "call", "assign"]
    value: Any
    position: int
    arity: int = 0


@dataclass(frozen=True)
class Expression:
    """A parsed expression; `parse` makes one.

    text: as it was given. program: its instructions.
    names: of the values and constants that it needs, in the order of their first use.
    """

    text: str
    program: tuple[Instruction, ...]
    names: tuple[str, ...]

    def check(self, given: Mapping[str, Any]) -> None:
        """Raise ExpressionError unless `given` has a value for each name, and no other."""
        taken = {i.value: i for i in self.program if i.kind == "assign"}
        for name in given:
            if name in taken:
                where = _at(self.text, taken[name].position)
                raise ExpressionError(f"{name} has a value, {name}=..., and is computed {where}: drop one of them")
        known = {*given, *CONSTANTS}
        missing = [i for i in self.program if i.kind == "name" and i.value in self.names and i.value not in known]
        unused = [name for name in given if name not in self.names]
        if missing:
            name, where = missing[0].value, _at(self.text, missing[0].position)
            if name in taken:
                raise ExpressionError(f"{name} is used before it is computed, {where}")
            if name in functions():
                raise ExpressionError(f"{name} is a function, {where}: it needs arguments, as in {name}(x)")
            hint = did_you_mean(name, unused or known | {*taken})
            raise ExpressionError(f"{name} has no value {where}{hint or f': give it one: {name}=2'}")
        if unused:
            others = f"; its names are {', '.join(self.names)}" if self.names else "; it has no names"
            hint = did_you_mean(unused[0], [n for n in self.names if n not in given]) or others
            raise ExpressionError(f"{unused[0]} has a value, but the expression does not use it{hint}")

    def compute(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the computed values: those of assigned names, and the result, under the key "" if it has no name.

        values: a tensor for each of `names` but constants, of one dtype and device (without any, float64 on the CPU).

        Raises ExpressionError, which says where, for arguments that a function does not take.

        >>> from gradflow import ops
        >>> parse("q = x + 2; f = q^2").compute({"x": ops.tensor(3.0)})["f"].item()
        25.0
        """
        like = next(iter(values.values()), ops.zeros((), "float64", "cpu"))
        known: dict[str, Any] = {**CONSTANTS, **values}
        computed: dict[str, Tensor] = {}
        stack: list[Any] = []
        for i in self.program:
            if i.kind == "number":
                stack.append(i.value)
            elif i.kind == "name":
                stack.append(known[i.value])
            elif i.kind == "assign":
                known[i.value] = computed[i.value] = _tensor(stack.pop(), like)
            else:
                arguments = stack[len(stack) - i.arity :]
                del stack[len(stack) - i.arity :]
                stack.append(self._call(i, arguments, like))
        return {**computed, "": _tensor(stack.pop(), like)} if stack else computed

    def _call(self, call: Instruction, arguments: list[Any], like: Tensor) -> Any:
        """Return what a function returns for numbers and tensors."""
        if call.value == "negative" and not isinstance(arguments[0], Tensor):
            return -arguments[0]
        function = functions()[call.value]
        kinds = [str(p.annotation) for p in inspect.signature(function).parameters.values()]
        weak = any(isinstance(x, Tensor) for x in arguments)
        for n, (kind, x) in enumerate(zip(kinds, arguments, strict=False)):
            if kind.startswith("Tensor") or (kind == "Any" and not weak and not n):
                arguments[n] = _tensor(x, like)
            elif "int" in kind and isinstance(x, int) and abs(x) > LARGEST:
                raise ExpressionError(f"{x:,} is more than {LARGEST:,}, {_at(self.text, call.position)}")
        try:
            result = function(*arguments)
        except (TypeError, ValueError, IndexError, OverflowError) as error:
            raise ExpressionError(f"{error}, {_at(self.text, call.position)}") from None
        if result.size > LARGEST:
            many = f"a value of {result.size:,} elements; at most {LARGEST:,} are drawn"
            raise ExpressionError(f"{many}, {_at(self.text, call.position)}")
        return result


def _tensor(x: Any, like: Tensor) -> Tensor:
    return x if isinstance(x, Tensor) else ops.full((), float(x), dtype=like.dtype, device=like.device)


@functools.cache
def functions() -> dict[str, Callable[..., Tensor]]:
    """Return the functions of expressions by name: those of `gradflow.ops` of one or more tensors, with one result."""
    found = {}
    for name in vars(ops)["__all__"]:
        signature = inspect.signature(getattr(ops, name))
        first = next(iter(signature.parameters.values()))
        of_tensors = first.annotation == "Tensor" or first.name == "x1"
        if of_tensors and signature.return_annotation in ("Tensor", "Any"):
            found[name] = getattr(ops, name)
    return found


def parse(text: str) -> Expression:
    """Return the parsed expression. Raises ExpressionError, which says where, for one that is not valid.

    >>> parse("2*sin(x)^2 - y").names
    ('x', 'y')
    >>> parse("2*sin(x)^2 - y)")
    Traceback (most recent call last):
    gradflow.drawing.expressions.ExpressionError: this ) closes nothing, at character 15 of '2*sin(x)^2 - y)'
    """
    text = unicodedata.normalize("NFC", text)
    if len(text) > LONGEST:
        raise ExpressionError(f"the expression has {len(text):,} characters; at most {LONGEST:,} are allowed")
    program = tuple(_Parser(text).program())
    assigned: set[str] = set()
    names: dict[str, None] = {}
    for i in program:
        if i.kind == "assign":
            assigned.add(i.value)
        elif i.kind == "name" and i.value not in assigned:
            names[i.value] = None
    return Expression(text, program, tuple(names))


class _Token(NamedTuple):
    kind: str  # "number", "name", "sign", or "end"
    text: str
    position: int


def _tokens(text: str) -> Iterator[_Token]:
    """Yield the tokens of an expression, the last of kind "end"."""
    position = 0
    end = len(text.rstrip())
    while position < end:
        found = _TOKEN.match(text, position)
        if found is None or (found.lastgroup == "name" and not found["name"].isidentifier()):
            start = len(text) - len(text[position:].lstrip())
            while found is not None and text[found.start("name") : start + 1].isidentifier():
                start += 1
            raise ExpressionError(_unexpected(text, start))
        kind = found.lastgroup or ""
        yield _Token(kind, found[kind], found.start(kind))
        position = found.end()
    yield _Token("end", "", end)


def _unexpected(text: str, position: int) -> str:
    c, where = text[position], _at(text, position)
    if c == ".":
        return f"attributes cannot be used {where}: {_without_attribute(text, position)}"
    if c in "[]":
        return f"an expression has no brackets {where}: give a vector or matrix a name, as in W=[[1,2],[3,4]]"
    return f"{c!r} cannot be used {where}" + (f": write {_OTHER_SIGNS[c]}" if c in _OTHER_SIGNS else "")


def _without_attribute(text: str, position: int) -> str:
    """What to write in place of an attribute, whose dot is at a position."""
    named = re.compile(r"\.(\w+)").match(text, position)
    name = named[1] if named else ""
    before = re.search(r"\w+$", text[:position])
    what = before[0] if before else "..."
    if name in ("T", "mT"):
        return f"write matrix_transpose({what})"
    if name in functions():
        return f"write {name}({'x' if what in ('gf', 'np', 'torch', 'math', 'numpy', 'gradflow') else what})"
    return "an expression has numbers, names, operators and functions"


def _at(text: str, position: int) -> str:
    """Where something is in an expression, with the text around it."""
    if position >= len(text):
        return f"at the end of {text[-40:]!r}"
    start = max(0, position - 20)
    return f"at character {position + 1} of {'...' * (start > 0)}{text[start : position + 20]!r}"


@dataclass
class _Waiting:
    """An operator that waits for its right operand, or an open parenthesis that waits for its end.

    binds: how tightly the operator binds; 0 for a parenthesis.
    value: the function to call, or "" for a parenthesis around a sum. count: of its arguments so far.
    """

    binds: int
    value: str
    position: int
    count: int

    def call(self) -> Instruction:
        return Instruction("call", self.value, self.position, self.count)


class _Parser:
    """Reads the tokens of an expression once, from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(_tokens(text))
        self._next = 0
        self._waiting: list[_Waiting] = []

    def program(self) -> Iterator[Instruction]:
        """Yield the instructions of the expression."""
        while True:
            start = self._tokens[self._next]
            named = start.kind == "name" and self._tokens[self._next + 1].text == "="
            self._next += 2 * named
            yield from self._sum()
            if named:
                yield Instruction("assign", start.text, start.position)
            end = self._take()
            if end.kind == "end":
                return
            if not named:
                raise self._error("what is before this ; needs a name, as in q = x + y; f = q * z", end)

    def _sum(self) -> Iterator[Instruction]:
        """Yield the instructions of a sum and all that is in it, up to a semicolon or the end."""
        while True:
            yield from self._operand()
            token = self._take()
            while token.text == ")":
                yield from self._close(token)
                token = self._take()
            if token.text in _OPERATORS:
                binds, from_right, function = _OPERATORS[token.text]
                yield from self._calls(binds + from_right)
                self._waiting.append(_Waiting(binds, function, token.position, 2))
            elif token.text == ",":
                yield from self._calls(1)
                if not self._waiting or not self._waiting[-1].value:
                    raise self._error("a comma only separates the arguments of a function", token)
                self._waiting[-1].count += 1
            elif token.kind == "end" or token.text == ";":
                yield from self._calls(1)
                if self._waiting:
                    raise self._error("this ( is never closed", self._waiting[-1])
                self._next -= 1
                return
            elif token.text == "=" and (function := next((w.value for w in self._waiting[::-1] if not w.binds), "")):
                message = f"arguments have no names here: write them in their order, as in {function}(x, 0)"
                raise self._error(message, token)
            elif token.text == "=":
                raise self._error("= gives a name to a whole step, as in q = x + y; f = q * z", token)
            else:
                raise self._error(f"an operator is missing before {token.text}", token)

    def _operand(self) -> Iterator[Instruction]:
        """Yield a number or a name, and keep what is before it: signs, open parentheses, functions."""
        while True:
            token = self._take()
            if token.kind == "number":
                return (yield Instruction("number", self._number(token), token.position))
            if token.kind == "name":
                if self._tokens[self._next].text != "(":
                    return (yield Instruction("name", token.text, token.position))
                if token.text not in functions():
                    other = _OTHER_NAMES.get(token.text)
                    hint = did_you_mean(token.text, functions()) or f"; a product is {token.text} * (...)"
                    hint = f"; write {other}" if other else hint
                    raise self._error(f"unknown function {token.text}", token, hint)
                self._take()
                if self._tokens[self._next].text == ")":
                    raise self._error(f"{token.text} takes {_counts(token.text)}; got none", token)
                self._waiting.append(_Waiting(0, token.text, token.position, 1))
            elif token.text == "(":
                self._waiting.append(_Waiting(0, "", token.position, 1))
            elif token.text == "-":
                self._waiting.append(_Waiting(_SIGN, "negative", token.position, 1))
            elif token.text != "+":
                before = f" before {token.text}" if token.text else ""
                if not self._text.strip():
                    raise ExpressionError("the expression is empty")
                raise self._error(f"a number, a name or ( is missing{before}", token)

    def _close(self, token: _Token) -> Iterator[Instruction]:
        """Yield the instructions up to the parenthesis that `token` closes, and the call of its function."""
        yield from self._calls(1)
        if not self._waiting:
            raise self._error("this ) closes nothing", token)
        opened = self._waiting.pop()
        if opened.value in ("max", "min") and opened.count > 1:
            opened.value += "imum"
        if opened.value:
            parameters = inspect.signature(functions()[opened.value]).parameters.values()
            if not sum(p.default is p.empty for p in parameters) <= opened.count <= len(parameters):
                raise self._error(f"{opened.value} takes {_counts(opened.value)}; got {opened.count}", opened)
            yield opened.call()

    def _calls(self, binds: int) -> Iterator[Instruction]:
        """Yield the calls of the waiting operators that bind at least so tightly, the last first."""
        while self._waiting and self._waiting[-1].binds >= binds:
            yield self._waiting.pop().call()

    def _number(self, token: _Token) -> int | float:
        if token.text.isdecimal() and len(token.text) <= _EXACT:
            return int(token.text)
        number = float(token.text)
        if math.isinf(number):
            raise self._error("this number is too large for float64", token)
        return number

    def _take(self) -> _Token:
        self._next += 1
        return self._tokens[self._next - 1]

    def _error(self, what: str, where: _Token | _Waiting, hint: str = "") -> ExpressionError:
        return ExpressionError(f"{what}, {_at(self._text, where.position)}{hint}")


def _counts(function: str) -> str:
    """The number of arguments that a function takes, in words."""
    parameters = inspect.signature(functions()[function]).parameters.values()
    least, most = sum(p.default is p.empty for p in parameters), len(parameters)
    return f"{least}{f' to {most}' if most > least else ''} argument{'s' * (most > 1)}"
