"""Each operation as text: its symbol, its formula, its local derivatives, and what it does to a gradient.

Templates name the arguments of an operation {0}, {1}, ..., its result {out} and the gradient of that {g}. [a > b] is 1
where a > b, else 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gradflow.autograd.graph import Operation
from gradflow.drawing.graph import Role
from gradflow.ops.custom import is_custom


class Text(NamedTuple):
    """How an operation is written.

    symbol: what to draw.
    formula: its value.
    local: for each argument the local derivative, or None if there is no short one. The last is that of all further
        arguments.
    role: what it does to a gradient.
    rules: for each argument the gradient that it receives (default: {g} times the local derivative).
    """

    symbol: str
    formula: str
    local: Sequence[str | None] = (None,)
    role: Role | None = None
    rules: Sequence[str | None] = (None,)


def _scales(formula: str, local: str, symbol: str = "") -> Text:
    """The text of an elementwise operation of one argument."""
    return Text(symbol or formula.partition("(")[0], formula, (local,), "scales")


def _moves(formula: str, rule: str, symbol: str = "") -> Text:
    """The text of an operation that moves elements."""
    return Text(symbol or formula.partition("(")[0], formula, (None,), "moves", (rule,))


def _routes(formula: str, *local: str | None, symbol: str = "") -> Text:
    """The text of an operation that passes the gradient to some of its elements or arguments."""
    return Text(symbol or formula.partition("(")[0], formula, local, "routes")


def _index(options: dict[str, Any]) -> Text:
    where = _index_text(options)
    return Text(f"[{where}]", f"{{0}}[{where}]", (None,), "routes", (f"{{g}} at [{where}], else 0",))


def _index_text(options: dict[str, Any]) -> str:
    """The index of `getitem` and `take` as in Python."""
    if "axis" in options:
        axis, start, stop = options["axis"], options["start"], options["stop"]
        return ":, " * int(axis) + (f"{start}" if stop is None else f"{start}:{stop}")
    key = options.get("key")
    parts = [] if key is None else list(key) if isinstance(key, tuple) else [key]
    if parts and parts[-1] is Ellipsis:
        parts.pop()
    return ", ".join(map(_part, parts)) or "..."


def _part(part: Any) -> str:
    if isinstance(part, slice):
        bounds = ["" if n is None else str(n) for n in (part.start, part.stop)]
        return ":".join([*bounds, *([] if part.step is None else [str(part.step)])])
    return "..." if part is Ellipsis else "indices" if hasattr(part, "shape") else str(part)


def _clip(options: dict[str, Any]) -> Text:
    limits = [f"{name}={options[name]}" for name in ("min", "max") if options.get(name) is not None]
    return _routes(f"clip({{0}}, {', '.join(limits)})", "[{0} within the limits]")


def _reduction(name: str, local: str, role: Role) -> Callable[[dict[str, Any]], Text]:
    return lambda options: Text(name, f"{name}({{0}}{_axis(options)})", (local,), role)


def _deviation(name: str, local: str) -> Callable[[dict[str, Any]], Text]:
    def text(options: dict[str, Any]) -> Text:
        correction = options.get("correction", 0)
        n = f"(n - {correction:g})" if correction else "n"
        return _reduction(name, local.replace("<n>", n), "scales")(options)

    return text


def _axis(options: dict[str, Any]) -> str:
    axis = options.get("axis")
    if axis is None:
        return ""
    return f", axis={axis[0] if isinstance(axis, tuple) and len(axis) == 1 else axis}"


def _along(name: str, local: str | None, rule: str) -> Callable[[dict[str, Any]], Text]:
    return lambda options: Text(name, f"{name}({{0}}{_axis(options)})", (local,), "mixes", (rule,))


SLOPES = {
    "relu": "[{out} > 0]",
    "sigmoid": "{out} * (1 - {out})",
    "tanh": "(1 - {out}^2)",
}
"""The derivatives of activations in terms of their results."""


def _linear(options: dict[str, Any]) -> Text:
    activation = options.get("activation")
    product = "{0} @ {1}^T + {2}"
    slope = "" if activation is None else SLOPES.get(activation, f"{activation}'({product})")
    upstream = f"{{g}} * {slope}" if slope else "{g}"
    grouped = f"({upstream})" if slope else upstream
    return Text(
        "linear" if activation is None else f"linear, {activation}",
        product if activation is None else f"{activation}({product})",
        (None,),
        "mixes",
        (f"{grouped} @ {{1}}", f"{grouped}^T @ {{0}}", f"sum({upstream}) over the rows"),
    )


def _perceptron(options: dict[str, Any]) -> Text:
    """Layers in each other; of more than three layers only their arguments."""
    arity, activation = len(options["shapes"]), options.get("activation", "f")  # a freed node has no parameters
    back = "{g} through the layers behind"
    hidden = "{0}"
    for i in range(1, arity - 2, 2):
        hidden = f"{activation}({hidden} @ {{{i}}}^T + {{{i + 1}}})"
    last = (f"{{g}}^T @ {hidden}", "sum({g}) over the rows")
    formula = f"{hidden} @ {{{arity - 2}}}^T + {{{arity - 1}}}"
    if arity > 7:
        formula, last = "", (back, last[1])
    return Text("perceptron", formula, (None,), "mixes", ("{g} through all layers", *[back] * (arity - 3), *last))


_UPSTREAM, _NORMALIZED = "{g} * {1}", "layer_norm({0})"
_LAYER_NORM = Text(
    "layer_norm",
    f"{_NORMALIZED} * {{1}} + {{2}}",
    (None,),
    "mixes",
    (
        f"({_UPSTREAM} - mean({_UPSTREAM}) - {_NORMALIZED} * mean({_UPSTREAM} * {_NORMALIZED}))"
        " / sqrt(var({0}) + {epsilon})",
        f"sum({{g}} * {_NORMALIZED}) over the rows",
        "sum({g}) over the rows",
    ),
)

_BATCH_NORM = _LAYER_NORM._replace(
    symbol="batch_norm",
    formula="batch_norm({0}) * {1} + {2}",
    rules=tuple(None if r is None else r.replace("layer_norm(", "batch_norm(") for r in _LAYER_NORM.rules),
)
_ROOT_MEAN = "rms_norm({0})"
_RMS_NORM = Text(
    "rms_norm",
    f"{_ROOT_MEAN} * {{1}}",
    (None,),
    "mixes",
    (
        f"({_UPSTREAM} - {_ROOT_MEAN} * mean({_UPSTREAM} * {_ROOT_MEAN})) / sqrt(mean({{0}}^2) + {{epsilon}})",
        f"sum({{g}} * {_ROOT_MEAN}) over the rows",
    ),
)


def _scatter_add(options: dict[str, Any]) -> Text:
    where = _index_text(options)
    if len(options["shapes"]) == 1:
        return Text("scatter_add", f"{{0}} added at [{where}] to zeros", (None,), "moves", (f"{{g}}[{where}]",))
    return Text("scatter_add", f"{{1}} added at [{where}] to {{0}}", (None,), "moves", ("{g}", f"{{g}}[{where}]"))


def _put(options: dict[str, Any]) -> Text:
    where = _index_text(options)
    rules = (f"{{g}}, but 0 at [{where}]", f"{{g}}[{where}]")
    return Text("put", f"{{0}} with {{1}} at [{where}]", (None,), "routes", rules)


def _loss(value: str, *local: str) -> Callable[[dict[str, Any]], Text]:
    def text(options: dict[str, Any]) -> Text:
        reduction = options.get("reduction", "mean")
        shown = value if reduction == "none" else f"{reduction}({value})"
        return Text("loss", shown, [f"{each} / n" if reduction == "mean" else each for each in local], "scales")

    return text


def _cross_entropy(options: dict[str, Any]) -> Text:
    scale = " / n" if options.get("reduction", "mean") == "mean" else ""
    logits, target = options["shapes"][:2]
    probabilities = "{1}" if len(target) == len(logits) else "one_hot({1})"
    local = (f"(softmax({{0}}) - {probabilities}){scale}", f"(-log_softmax({{0}}){scale})")
    return Text("cross_entropy", "cross_entropy({0}, {1})", local, "scales")


_SHARE = "[{0} = {out}] / sum([{0} = {out}])"
"""The derivative of the largest or smallest element: equal ones share the gradient."""

TEXTS: dict[str, Text | Callable[[dict[str, Any]], Text]] = {
    # elementwise, two arguments
    "add": Text("+", "{0} + {1}", ("1",), "distributes"),
    "subtract": Text("-", "{0} - {1}", ("1", "(-1)"), "scales"),
    "multiply": Text("*", "{0} * {1}", ("{1}", "{0}"), "switches"),
    "divide": Text("/", "{0} / {1}", ("1 / {1}", "(-{out} / {1})"), "scales"),
    "power": Text("^", "{0} ^ {1}", ("{1} * {0}^({1} - 1)", "{out} * log({0})"), "scales"),
    "atan2": Text("atan2", "atan2({0}, {1})", ("{1} / ({0}^2 + {1}^2)", "(-{0} / ({0}^2 + {1}^2))"), "scales"),
    "floor_divide": Text("//", "{0} // {1}", ("0", "0"), "scales"),
    "remainder": Text("%", "{0} % {1}", ("1", "(-({0} // {1}))"), "scales"),
    "logaddexp": Text("logaddexp", "logaddexp({0}, {1})", ("sigmoid({0} - {1})", "sigmoid({1} - {0})"), "scales"),
    "maximum": _routes(  # where they are equal, each has half the gradient
        "max({0}, {1})", "([{0} > {1}] + [{0} = {1}] / 2)", "([{1} > {0}] + [{1} = {0}] / 2)"
    ),
    "minimum": _routes("min({0}, {1})", "([{0} < {1}] + [{0} = {1}] / 2)", "([{1} < {0}] + [{1} = {0}] / 2)"),
    "where": _routes("where({0}, {1}, {2})", None, "[{0}]", "[not {0}]"),
    # without gradients
    **{
        name: Text(symbol, f"{{0}} {symbol} {{1}}")
        for name, symbol in {
            "equal": "==",
            "not_equal": "!=",
            "less": "<",
            "less_equal": "<=",
            "greater": ">",
            "greater_equal": ">=",
            "logical_and": "and",
            "logical_or": "or",
            "logical_xor": "xor",
        }.items()
    },
    "logical_not": Text("not", "not {0}"),
    # elementwise, one argument
    "negative": _scales("-{0}", "(-1)", "-"),
    "exp": _scales("exp({0})", "{out}"),
    "log": _scales("log({0})", "1 / {0}"),
    "log1p": _scales("log1p({0})", "1 / (1 + {0})"),
    "expm1": _scales("expm1({0})", "({out} + 1)"),
    "sqrt": _scales("sqrt({0})", "1 / (2 * {out})"),
    "square": _scales("{0}^2", "2 * {0}", "^2"),
    "abs": _scales("|{0}|", "sign({0})", "abs"),
    "sin": _scales("sin({0})", "cos({0})"),
    "cos": _scales("cos({0})", "(-sin({0}))"),
    "log2": _scales("log2({0})", "1 / ({0} * log(2))"),
    "log10": _scales("log10({0})", "1 / ({0} * log(10))"),
    "tan": _scales("tan({0})", "(1 + {out}^2)"),
    "asin": _scales("asin({0})", "1 / sqrt(1 - {0}^2)"),
    "acos": _scales("acos({0})", "(-1 / sqrt(1 - {0}^2))"),
    "atan": _scales("atan({0})", "1 / (1 + {0}^2)"),
    "sinh": _scales("sinh({0})", "cosh({0})"),
    "cosh": _scales("cosh({0})", "sinh({0})"),
    "erf": _scales("erf({0})", "2 / sqrt(pi) * exp(-{0}^2)"),
    "trunc": _scales("trunc({0})", "0"),
    "tanh": _scales("tanh({0})", SLOPES["tanh"]),
    "sigmoid": _scales("sigmoid({0})", SLOPES["sigmoid"]),
    "softplus": _scales("softplus({0})", "sigmoid({0})"),
    "silu": _scales("silu({0})", "sigmoid({0}) * (1 + {0} * (1 - sigmoid({0})))"),
    "gelu": _scales("gelu({0})", "gelu'({0})"),
    "gelu_exact": _scales("gelu_exact({0})", "gelu_exact'({0})"),
    "mish": _scales("mish({0})", "mish'({0})"),
    "selu": _scales("selu({0})", "selu'({0})"),
    "softsign": _scales("softsign({0})", "1 / (1 + |{0}|)^2"),
    "sign": _scales("sign({0})", "0"),
    "floor": _scales("floor({0})", "0"),
    "ceil": _scales("ceil({0})", "0"),
    "round": _scales("round({0})", "0"),
    "relu": _routes("relu({0})", "[{0} > 0]"),
    "leaky_relu": _scales("leaky_relu({0})", "([{0} > 0] + {parameter} * [{0} <= 0])"),
    "elu": _scales("elu({0})", "([{0} > 0] + ({out} + {parameter}) * [{0} <= 0])"),
    "clip": _clip,
    "hardtanh": _routes("hardtanh({0}, {min_val}, {max_val})", "[{min_val} < {0} < {max_val}]"),
    "prelu": Text("prelu", "prelu({0}, {1})", ("([{0} > 0] + {1} * [{0} <= 0])", "{0} * [{0} <= 0]"), "scales"),
    "dropout": _scales("dropout({0}, {p})", "[kept] / (1 - {p})"),
    # shapes and places
    "copy": _moves("copy({0})", "{g}"),
    "astype": _moves("astype({0})", "{g}"),
    "to_device": _moves("to_device({0})", "{g}"),
    "vmap": _moves("vmap({0})", "vmap({g})"),
    "reshape": _moves("reshape({0}, {shape})", "reshape({g})"),
    "permute_dims": _moves("permute_dims({0}, {axes})", "permute_dims({g})"),
    "matrix_transpose": _moves("{0}^T", "{g}^T", "T"),
    "flip": _moves("flip({0})", "flip({g})"),
    "pad": _moves("pad({0})", "the inside of {g}"),
    "concat": _moves("", "its part of {g}", "concat"),
    "stack": _moves("", "its part of {g}", "stack"),
    "broadcast_to": Text(
        "broadcast_to", "broadcast_to({0}, {shape})", (None,), "sums", ("sum of {g} over the copies",)
    ),
    "getitem": _index,
    "take": _index,
    "take_along_axis": Text(
        "take_along_axis", "take_along_axis({0}, {1})", (None,), "routes", ("scatter_add_along_axis({g}, {1})",)
    ),
    "put": _put,
    "scatter_add": _scatter_add,
    "scatter_add_along_axis": _moves("scatter_add_along_axis({0}, {1})", "take_along_axis({g}, {1})"),
    # reductions
    "sum": _reduction("sum", "1", "distributes"),
    "mean": _reduction("mean", "(1 / n)", "scales"),
    "max": _reduction("max", _SHARE, "routes"),
    "min": _reduction("min", _SHARE, "routes"),
    "prod": _reduction("prod", "(the product of the others)", "scales"),
    "var": _deviation("var", "2 * ({0} - mean({0})) / <n>"),
    "std": _deviation("std", "({0} - mean({0})) / (<n> * {out})"),
    "norm": _reduction("norm", "{0} / {out}", "scales"),
    "logsumexp": _reduction("logsumexp", "exp({0} - {out})", "scales"),
    "softmax": _along("softmax", "diag({out}) - {out} {out}^T", "{out} * ({g} - sum({g} * {out}))"),
    "log_softmax": _along("log_softmax", "I - 1 exp({out})^T", "{g} - exp({out}) * sum({g})"),
    "cumulative_sum": _along("cumulative_sum", None, "the running sum of {g} from the end"),
    # layers and losses
    "matmul": Text("@", "{0} @ {1}", (None,), "mixes", ("{g} @ {1}^T", "{0}^T @ {g}")),
    "linear": _linear,
    "perceptron": _perceptron,
    "layer_norm": _LAYER_NORM,
    "rms_norm": _RMS_NORM,
    "batch_norm": _BATCH_NORM,
    "mse_loss": _loss("({0} - {1})^2", "2 * ({0} - {1})", "(-2) * ({0} - {1})"),
    "cross_entropy": _cross_entropy,
}


def text_of(op: Operation, shapes: Sequence[tuple[int, ...] | None], options: dict[str, Any]) -> Text:
    """The text of an operation, a generic one if the table has none.

    shapes: of the arguments, None for one that is not there.
    """
    found = Text(op.name, "") if is_custom(op) else TEXTS.get(op.name, Text(op.name, "", role="mixes"))
    text = found if isinstance(found, Text) else found({**options, "shapes": shapes})
    if not text.formula:
        name = op.name.replace("{", "{{").replace("}", "}}")
        text = text._replace(formula=f"{name}({', '.join(f'{{{i}}}' for i in range(len(shapes)))})")
    return text


def formula_of(text: Text, labels: Sequence[str | None], out: str, options: dict[str, Any]) -> str:
    """The value of an operation as text. A label of None is an argument that is not there."""
    return _filled(text.formula, labels, out, "", options)


def local_of(text: Text, argument: int, labels: Sequence[str | None], out: str, options: dict[str, Any]) -> str | None:
    """The local derivative for an argument as text, or None if there is no short one."""
    template = text.local[min(argument, len(text.local) - 1)]
    return None if template is None else _filled(template, labels, out, "", options)


def rule_of(
    text: Text, argument: int, labels: Sequence[str | None], out: str, g: str, options: dict[str, Any]
) -> str | None:
    """What an argument receives, as text, in terms of the gradient `g` of the result; None for a generic rule."""
    template = text.rules[min(argument, len(text.rules) - 1)]
    if template is not None:
        return _filled(template, labels, out, g, options)
    local = local_of(text, argument, labels, out, options)
    return None if local is None else f"{g} * {local}"


def _filled(template: str, labels: Sequence[str | None], out: str, g: str, options: dict[str, Any]) -> str:
    for i, label in enumerate(labels):
        if label is None:
            for sign in (" +", " *", ","):
                template = template.replace(f"{sign} {{{i}}}", "")
    return template.format(*labels, **{**options, "out": out, "g": g})
