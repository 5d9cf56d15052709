"""`gradflow graph`: an expression, or a sample in a run's model, with all values and gradients."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from gradflow.cli.options import check_out
from gradflow.cli.output import UsageError, nothing_on_stdout, print_note, print_warning
from gradflow.cli.predict import load_model, usage_errors
from gradflow.text import did_you_mean, printable

if TYPE_CHECKING:
    from gradflow.drawing.tracing import Trace

_HELP = """\
Compute an expression and its gradients, and print each step: forward, then
backward. With -o, draw the graph instead: values in green, gradients in red.

EXPRESSION has numbers, names, + - * / ^ (or **), @ for products of matrices,
parentheses, pi, e, and the functions of gradflow: exp, log, sigmoid, relu,
maximum(a, b), sum, softmax, ... Each name needs a value: a number, or a vector
or matrix in brackets. Steps can have names: "q = x + y; f = q * z". Numbers
are float64.

FOLDER is the folder of a run. Its model computes the loss of one sample that
it was not trained on, without dropout.
"""
_EXAMPLES = """\
examples:
  gradflow graph "(x+y)*z" x=-2 y=5 z=-4
  gradflow graph "q = x + y; f = q * z" x=-2 y=5 z=-4 -o graph.svg
  gradflow graph "1/(1 + exp(-(w*x + b)))" w=2 x=-1 b=-3 -o graph.html
  gradflow graph "sum((W @ x)^2)" W="[[0.1,0.5],[-0.3,0.8]]" x="[0.2,0.4]"
  gradflow graph runs/digits-1 --sample 3 -o digit.svg

Pictures are .html and .dot, which need nothing else, or .svg, .png and .pdf,
which need the extra "viz". -o can be given several times. A picture replaces
one of its kind.

exit status: 0 done; 1 a picture cannot be written; 2 invalid input;
130 Ctrl-C
"""
_USAGE = """\
gradflow graph EXPRESSION [NAME=VALUE ...] [-o FILE] [options]
       gradflow graph FOLDER [--sample N] [-o FILE] [options]"""
_WITH_VALUE = ("-o", "--out", "--sample", "--device")
_STARTS = {
    ".svg": b"<svg", ".png": b"\x89PNG", ".pdf": b"%PDF", ".html": b"<!doctype html", ".dot": b"digraph"
}  # fmt: skip
"""What is in the first bytes of a picture of each kind."""

_TITLE = 100  # characters of an expression in the title of a picture


def add_parser(commands: Any) -> None:
    """Add the command to the parser of the command line."""
    parser = commands.add_parser(
        "graph",
        help="the graph of an expression or of a trained model, drawn",
        usage=_USAGE,
        description=_HELP,
        epilog=_EXAMPLES,
    )
    parser.set_defaults(run=run)
    parser.add_argument("what", nargs="?", metavar="EXPRESSION", help="an expression, or the folder of a run")
    parser.add_argument("values", nargs="*", metavar="NAME=VALUE", help="the values of the names in the expression")
    parser.add_argument("-o", "--out", action="append", default=[], metavar="FILE", help="draw the graph in this file")
    parser.add_argument("--local", action="store_true", help="with the local derivatives")
    parser.add_argument("--roles", action="store_true", help="with what each step does to a gradient")
    parser.add_argument("--sample", type=int, metavar="N", help="the sample of the test part, from 0 (default: 0)")
    parser.add_argument("--device", default="cpu", help="cpu (default), auto, cuda, cuda:N or a plug-in's device")


def options_first(words: Sequence[str]) -> list[str]:
    """Return the words after the command with the options first, since an expression may begin with a minus sign.

    >>> options_first(["-x^2", "-o", "x.svg", "x=3"])
    ['-o', 'x.svg', '--', '-x^2', 'x=3']
    """
    options: list[str] = []
    others: list[str] = []
    left = iter(words)
    for word in left:
        if word == "--":
            others += left
        elif word in _WITH_VALUE:
            options += [word, *itertools.islice(left, 1)]
        elif (
            word == "-h"
            or (word[:2] == "--" and word[2:3].isalpha())
            or (word[:2] == "-o" and os.path.splitext(word)[1][1:].isalpha())
        ):
            options.append(word)
        else:
            others.append(word)
    return [*options, "--", *others] if others else options


def run(arguments: argparse.Namespace) -> int:
    """Compute, print or draw the graph, and return the exit status."""
    from gradflow.drawing.text import explained
    from gradflow.training.runs.folder import CONFIG, MODEL

    if arguments.what is None:
        raise UsageError('graph takes an expression, such as "(x+y)*z" x=-2 y=5 z=-4, or the folder of a run')
    _check_pictures(arguments)
    what, values = arguments.what, arguments.values
    is_run = any(os.path.isfile(os.path.join(what, name)) for name in (CONFIG, MODEL)) or what.endswith(MODEL)
    if is_run and values:
        raise UsageError(
            f"{what} is a run, which takes no values like {values[0]}; an expression of this text: ({what})"
        )
    if values and arguments.sample is not None:
        raise UsageError("--sample is for a run; an expression has values, or a sample, but not both")
    of_run = is_run or arguments.sample is not None
    if of_run:
        title, trace = _of_run(what, arguments.sample or 0, arguments.device)
    else:
        title, trace = what[:_TITLE], _of_expression(what, values, arguments.device)
    title = printable(title)
    trace.graph.title = title
    for step in trace.graph.steps:
        step.line = None  # no line of the user's code calls it
    if arguments.out:
        if of_run:
            print(title)
        _draw(trace, arguments)
    elif arguments.local or arguments.roles:
        print(title, explained(trace.graph), sep="\n\n")
    else:
        print(trace)
    for line in _not_finite(trace):
        print_warning(line)
    return 0


def _check_pictures(arguments: argparse.Namespace) -> None:
    from gradflow.drawing.rendering import SUFFIXES

    for path in arguments.out:
        suffix = os.path.splitext(path)[1].lower()
        if path and suffix not in SUFFIXES:
            raise UsageError(f"-o {path}: the name of a picture ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
        check_out(path, partial(_is_picture, suffix))


def _is_picture(suffix: str, start: bytes) -> bool:
    return _STARTS[suffix] in start or _STARTS[suffix] in start.lower()


def _draw(trace: Trace, arguments: argparse.Namespace) -> None:
    from gradflow.drawing.rendering import save

    for path in arguments.out:
        try:
            save(trace.graph, path, local=arguments.local, roles=arguments.roles)
        except ValueError as error:  # too many steps for this kind of picture
            raise UsageError(f"{path}: {error}") from None
        except OSError as error:
            raise OSError(f"cannot write {path}: {error.strerror or error}") from None
        print(f"gradflow: the graph is in {printable(path)}", file=sys.stderr, flush=True)


def _not_finite(trace: Trace) -> Iterator[str]:
    """Yield a warning that names the first step whose value is not finite, or else the first such gradient."""
    graph = trace.graph
    for step in graph.steps:
        numbers = graph.values[step.output].forward
        if numbers is not None and numbers.nonfinite:
            yield f"not all values are finite; the first that is not: {step.formula}"
            return
    for value in graph.values:
        if value.gradient is not None and value.gradient.nonfinite:
            yield f"the gradient of {value.label} is not finite"
            return


# ---------------------------------------------------------------------- an expression


def _of_expression(text: str, words: Sequence[str], device: str) -> Trace:
    """Return the trace of an expression and of its backward pass."""
    import numpy as np

    import gradflow as gf
    from gradflow.drawing.expressions import ExpressionError, parse

    with nothing_on_stdout(), usage_errors():
        device = str(gf.choose_device()[0] if device == "auto" else gf.get_backend(device).device)
    with np.errstate(all="ignore"):  # what is not finite is told once
        try:
            values = dict(_value(word, device) for word in _once(words))
            expression = parse(text)
            expression.check(values)
        except ExpressionError as error:
            is_path = not words and (os.path.exists(text) or os.sep in text)
            if is_path and not os.path.exists(text):
                raise UsageError(
                    f"there is no folder {text}{_similar(text) or f'; as an expression: {error}'}"
                ) from None
            neither = f"{text} is neither the folder of a run nor an expression with its values: " if is_path else ""
            raise UsageError(f"{neither}{error}") from None
        if not values:
            raise UsageError('the expression has no names, so there is no gradient; try "(x+y)*z" x=-2 y=5 z=-4')
        with gf.trace(**values) as trace:
            try:
                computed = expression.compute(values)
            except ExpressionError as error:
                raise UsageError(str(error)) from None
            result = list(computed.values())[-1]
            unnamed = computed.pop("", None)
            if unnamed is not None and "f" not in {*values, *computed}:
                computed["f"] = unnamed
            trace.name(**computed)
            if not result.requires_grad:
                raise UsageError("the result has no gradient: no step from a name to it has one")
            if result.is_leaf:
                raise UsageError("the expression is a single name: there is no step to draw")
            result.backward(gf.ones_like(result))
    if result.shape:
        print_note(f"the result has shape {result.shape}: the gradients are those of the sum of its elements")
    return trace


def _similar(path: str) -> str:
    """The folder beside a missing one that it may be, as a question."""
    folder, name = os.path.split(path.rstrip(os.sep))
    try:
        beside = os.listdir(folder or os.curdir)
    except OSError:
        return ""
    return did_you_mean(path, [os.path.join(folder, each) for each in beside]) if name else ""


def _once(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the name and the value of each NAME=VALUE."""
    seen = set()
    for word in words:
        name, equals, value = unicodedata.normalize("NFC", word).partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            quotes = "" if equals else "; an expression with spaces needs quotes"
            raise UsageError(f"{word!r} is not NAME=VALUE, such as x=-2{quotes}")
        if name in seen:
            raise UsageError(f"{name} has two values")
        seen.add(name)
        yield name, value


def _value(given: tuple[str, str], device: str) -> tuple[str, Any]:
    """Return a name and its value as a tensor: of JSON in brackets, or of an expression without names."""
    import gradflow as gf
    from gradflow.drawing.expressions import CONSTANTS, ExpressionError, parse

    name, text = given
    try:
        if text.lstrip().startswith("["):
            data = json.loads(text, parse_constant=_refuse, parse_int=_finite, parse_float=_finite)
        else:
            expression = parse(text)
            if set(expression.names) - set(CONSTANTS):
                raise UsageError(f"{name} must be a number, such as -2 or pi/4, or a list in brackets; got {text!r}")
            (number,) = expression.compute({}).values()
            data = number.item()
        return name, gf.tensor(data, dtype="float64", device=device, requires_grad=True)
    except ExpressionError as error:
        brackets = f'; a vector needs brackets: {name}="[{text}]"' if "," in text and "(" not in text else ""
        raise UsageError(f"{name}: {error}{brackets}") from None
    except RecursionError:
        raise UsageError(f"{name} has too many brackets") from None
    except json.JSONDecodeError as error:
        at = f"at character {error.pos + 1} of {printable(text[:40])!r}"
        raise UsageError(f"{name} is not a list of numbers such as [1,2] or [[1,2],[3,4]]: see {at}") from None
    except (ValueError, TypeError) as error:
        raise UsageError(f"{name} is not an array of numbers: {error}") from None


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:20]} is too large for float64")
    return number


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a number")


# ---------------------------------------------------------------------- a run


def _of_run(folder: str, number: int, device: str) -> tuple[str, Trace]:
    """Return what is traced in words, and the trace of the loss of a sample in the model of a run."""
    import numpy as np

    import gradflow as gf
    from gradflow.training.runs.folder import MODEL
    from gradflow.training.runs.preparation import plan
    from gradflow.training.runs.settings import Settings, read_config

    if folder.endswith(MODEL):
        raise UsageError(f"{folder} has no samples: give the folder of the run")
    predictor = load_model(folder, device)
    with nothing_on_stdout(), usage_errors():
        content = read_config(folder)
        ready = plan(Settings(**content["settings"] | {"device": str(predictor.device)}))
    if ready.data_hash != content.get("data", {}).get("hash"):
        raise UsageError(f"{ready.settings.dataset} is not the data that {folder} was trained on: its hash differs")
    parts = {"test": ready.split.test, "validation": ready.split.validation, "training": ready.split.train}
    which, part = next((name, part) for name, part in parts.items() if part is not None)
    if not 0 <= number < len(part):
        raise UsageError(f"--sample must be from 0 to {len(part) - 1}, in the {which} part; got {number}")
    rows = slice(number, number + 1)
    dtype = next(predictor.members[0].parameters()).dtype
    x = gf.tensor(part.inputs[rows], dtype=dtype, device=predictor.device)
    target = gf.tensor(part.targets[rows], device=predictor.device)
    loss_of = gf.cross_entropy if predictor.classes else gf.mse_loss
    with np.errstate(all="ignore"), gf.trace(x=x, target=target) as trace:
        output = predictor.members[0](x)
        loss = loss_of(output, target)
        trace.name(output=output, loss=loss)
        loss.backward()
    result = output.detach().numpy()
    if predictor.targets is None:
        known = f"label {part.raw_targets[number]}, predicted {predictor.labels[result.argmax()]}"
    else:
        known = f"value {_plain(part.raw_targets[number])}, predicted {_plain(predictor.targets.undo(result)[0])}"
    members = f", member 1 of {len(predictor.members)}" if len(predictor.members) > 1 else ""
    name = os.path.basename(os.path.realpath(folder))
    return f"{name}, sample {number} of the {which} part ({len(part)} samples){members}: {known}", trace


def _plain(values: Any) -> str:
    """One value or several in a few digits."""
    from gradflow.drawing.numbers import short

    return " ".join(short(float(x)) for x in values)
