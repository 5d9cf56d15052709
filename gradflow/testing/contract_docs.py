"""The contract of a backend as text, made of the code.

`python -m gradflow.testing.contract_docs docs/write-a-backend.md`

Writes the part of the page between two markers anew: the array functions with the arguments that gradflow passes, and
the signature and docstring of each service and kernel of `gradflow.backend.Backend`. The latter are read from the
source, so that the text does not depend on the version of Python.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from gradflow.backend import (
    ACTIVATIONS,
    ARRAY_FUNCTIONS,
    AdamOptions,
    AdamScalars,
    Backend,
    Diagnosis,
    MemoryStats,
    RMSpropOptions,
    RMSpropScalars,
    SGDOptions,
    SGDScalars,
    composed,
    contract,
    device,
    optimizer_steps,
    philox,
)
from gradflow.backend.array_functions import FUNCTION_GROUPS

BEGIN = "<!-- made by python -m gradflow.testing.contract_docs: do not edit from here -->"
END = "<!-- to here -->"

OPTIONS = (SGDOptions, SGDScalars, AdamOptions, AdamScalars, RMSpropOptions, RMSpropScalars)
"""What the steps of optimizers take beside arrays."""


def array_functions() -> Iterator[str]:
    """The lines on the array functions: a list for each group, names of equal signatures in one item."""
    for title, functions in FUNCTION_GROUPS.items():
        yield from (f"{title}:", "")
        for signature in dict.fromkeys(functions.values()):
            names = [f"`{name}`" for name, given in functions.items() if given == signature]
            yield from _wrapped(f"- `{signature}`: {' '.join(names)}", "  ")
        yield ""


def methods() -> Iterator[str]:
    """The lines on the attributes, services and kernels of `Backend`: under the headings that the sources have."""
    classes = {name: cls for module in (contract, composed, philox, optimizer_steps) for name, cls in _classes(module)}
    yield from ("### Attributes", "")
    for base in (Backend, *Backend.__bases__):
        if base.__name__ in classes:
            yield from _methods_of(*classes[base.__name__])
    yield from ("### What they return and take", "")
    records = {**dict(_classes(device)), **dict(_classes(optimizer_steps))}
    for record in (Diagnosis, MemoryStats, *OPTIONS):
        _, node = records[record.__name__]
        fields = [ast.unparse(n) for n in node.body if isinstance(n, ast.AnnAssign)]
        yield from _entry(f"{node.name}({', '.join(fields)})", ast.get_docstring(node) or "")
    yield f"Activations: {', '.join(f'`{name}`' for name in ACTIVATIONS)}."
    yield ""


def _classes(module: ModuleType) -> Iterator[tuple[str, tuple[str, ast.ClassDef]]]:
    """The classes of a module by name, each with the source of the module."""
    source = inspect.getsource(module)
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            yield node.name, (source, node)


def _methods_of(source: str, cls: ast.ClassDef) -> Iterator[str]:
    headings = {
        number: match[1] for number, line in enumerate(source.splitlines(), 1)
        if (match := re.match(r" {4}# -{9,} (.+)$", line))
    }  # fmt: skip
    heading = ""
    for node, following in zip(cls.body, [*cls.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(following, ast.Expr):
            yield from _entry(ast.unparse(node), ast.literal_eval(following.value))
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        above = [text for number, text in headings.items() if number < node.lineno]
        if above and above[-1] != heading:
            heading = above[-1]
            yield from (f"### {heading[0].upper()}{heading[1:]}", "")
        yield from _entry(_signature(node), ast.get_docstring(node) or "", _kind(node))


def _kind(node: ast.FunctionDef) -> str:
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    kind = "Required." if "abstractmethod" in decorators else "Inherited." if "kernel" not in decorators else ""
    return f"{kind} A class method." if "classmethod" in decorators else kind


def _signature(node: ast.FunctionDef) -> str:
    given = node.args
    texts = [a.arg if a.annotation is None else f"{a.arg}: {ast.unparse(a.annotation)}" for a in given.args]
    for i, default in enumerate(reversed(given.defaults), 1):
        texts[-i] += f" = {ast.unparse(default)}"
    del texts[0]  # self or cls
    returned = ast.unparse(node.returns) if node.returns else "None"
    whole = f"{node.name}({', '.join(texts)}) -> {returned}"
    if len(whole) <= 110:
        return whole
    lines = textwrap.wrap(", ".join(text.replace(" ", "\0") for text in texts), 106, break_long_words=False)
    return "\n".join([f"{node.name}(", *(f"    {line}" for line in lines), f") -> {returned}"]).replace("\0", " ")


def _entry(signature: str, text: str, kind: str = "") -> Iterator[str]:
    first, *rest = inspect.cleandoc(text).split("\n\n")
    yield from ("```python", signature, "```", "")
    for paragraph in (f"{kind} {first}".strip(), *rest):
        yield from (*_wrapped(paragraph), "")


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def contract_text() -> str:
    """The whole of what is made of the code, in Markdown."""
    standard = "https://data-apis.org/array-api/2024.12/API_specification/"
    head = (
        "The functions of the [Array API standard, 2024.12](" + standard + "), with its semantics and names of "
        "arguments. An argument that the standard has and this list does not is never passed. `dtype` is a value of "
        "`Backend.dtypes`."
    )
    lines = [f"### {len(ARRAY_FUNCTIONS)} array functions", "", *_wrapped(head), "", *array_functions(), *methods()]
    return "\n".join(lines).rstrip("\n")


def update(page: str) -> str:
    """The text of a page with what stands between the markers made anew. ValueError where it lacks the markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no lines {BEGIN!r} and, below it, {END!r}")
    return f"{before}{BEGIN}\n\n{contract_text()}\n\n{END}{after}"


def main(words: Sequence[str]) -> int:
    """Bring the page of that name up to date; the exit status: 0 done, 2 no such page or no markers in it."""
    if len(words) != 1:
        print("usage: python -m gradflow.testing.contract_docs PAGE", file=sys.stderr)
        return 2
    path = Path(words[0])
    try:
        page = path.read_text(encoding="utf-8")
        path.write_text(update(page), encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"gradflow.testing.contract_docs: {path}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
