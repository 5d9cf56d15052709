"""Generate the text of the backend contract from the code.

`python -m gradflow.testing.contract_docs docs/write-a-backend.md`

This rewrites the part of the page between two markers: the array functions with the arguments that gradflow passes, and
the signature and docstring of each service and kernel of `gradflow.backend.Backend`. Signatures are read from the
source, so the text does not depend on the version of Python.
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
    MomentOptions,
    MomentScalars,
    RMSpropOptions,
    RMSpropScalars,
    SGDOptions,
    SGDScalars,
    composed,
    contract,
    device,
    kernels,
    normalization,
    optimizer_steps,
    philox,
)
from gradflow.backend.array_functions import FUNCTION_GROUPS

BEGIN = "<!-- made by python -m gradflow.testing.contract_docs: do not edit from here -->"
END = "<!-- to here -->"

OPTIONS = (
    SGDOptions, SGDScalars, AdamOptions, AdamScalars, RMSpropOptions, RMSpropScalars, MomentOptions, MomentScalars,
)  # fmt: skip
"""The types of the options and scalars of optimizer steps."""


def array_functions() -> Iterator[str]:
    """Yield the lines on the array functions: a list for each group, one item for all names with equal signatures."""
    for title, functions in FUNCTION_GROUPS.items():
        yield from (f"{title}:", "")
        for signature in dict.fromkeys(functions.values()):
            names = [f"`{name}`" for name, given in functions.items() if given == signature]
            yield from _wrapped(f"- `{signature}`: {' '.join(names)}", "  ")
        yield ""


def methods() -> Iterator[str]:
    """Yield the lines on the attributes, services and kernels of `Backend`, under the headings of the source."""
    sources = (kernels, contract, composed, normalization, philox, optimizer_steps)
    classes = {name: found for module in sources for name, found in _classes(module)}
    yield from ("### Attributes", "")
    for cls in (kernels.KernelBase, Backend, *Backend.__bases__):
        if cls.__name__ in classes:
            yield from _methods_of(*classes[cls.__name__])
    yield from ("### Types of results and options", "")
    records = {**dict(_classes(device)), **dict(_classes(optimizer_steps))}
    for record in (Diagnosis, MemoryStats, *OPTIONS):
        _, node = records[record.__name__]
        fields = [ast.unparse(n) for n in node.body if isinstance(n, ast.AnnAssign)]
        yield from _entry(f"{node.name}({', '.join(fields)})", ast.get_docstring(node) or "")
    yield f"Activations: {', '.join(f'`{name}`' for name in ACTIVATIONS)}."
    yield ""


def _classes(module: ModuleType) -> Iterator[tuple[str, tuple[str, ast.ClassDef]]]:
    """Yield the classes of a module by name, each with the source of the module."""
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
    if "functools.cached_property" in decorators:
        return f"{kind} A property."
    return f"{kind} A class method." if "classmethod" in decorators else kind


def _signature(node: ast.FunctionDef) -> str:
    given = node.args
    texts = [a.arg if a.annotation is None else f"{a.arg}: {ast.unparse(a.annotation)}" for a in given.args]
    for i, default in enumerate(reversed(given.defaults), 1):
        texts[-i] += f" = {ast.unparse(default)}"
    del texts[0]  # self or cls
    if given.kwonlyargs:
        named = zip(given.kwonlyargs, given.kw_defaults, strict=True)
        texts += ["*", *(f"{ast.unparse(a)}{'' if d is None else f' = {ast.unparse(d)}'}" for a, d in named)]
    returned = ast.unparse(node.returns) if node.returns else "None"
    if _kind(node).endswith("A property."):
        return f"{node.name}: {returned}"
    whole = f"{node.name}({', '.join(texts)}) -> {returned}"
    if len(whole) <= 110:
        return whole
    lines = textwrap.wrap(", ".join(text.replace(" ", "\0") for text in texts), 106, break_long_words=False)
    return "\n".join([f"{node.name}(", *(f"    {line}" for line in lines), f") -> {returned}"]).replace("\0", " ")


def _entry(signature: str, text: str, kind: str = "") -> Iterator[str]:
    first, *rest = inspect.cleandoc(text).split("\n\n")
    yield from ("```python", signature, "```", "")
    for paragraph in (f"{kind} {first}".strip(), *rest):
        if not paragraph.startswith(">>>"):  # the reference has the examples
            yield from (*_wrapped(paragraph), "")


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def contract_text() -> str:
    """Return everything that is generated from the code, as Markdown."""
    standard = "https://data-apis.org/array-api/2024.12/API_specification/"
    head = (
        "The functions of the [Array API standard, 2024.12](" + standard + "), with its semantics and names of "
        "arguments. gradflow never passes arguments of the standard that are not in this list. `dtype` is a value of "
        "`Backend.dtypes`."
    )
    lines = [f"### {len(ARRAY_FUNCTIONS)} array functions", "", *_wrapped(head), "", *array_functions(), *methods()]
    return "\n".join(lines).rstrip("\n")


def update(page: str) -> str:
    """Return the text of a page with the part between the markers regenerated. Raises ValueError without markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs a line {BEGIN!r} and, below it, a line {END!r}")
    return f"{before}{BEGIN}\n\n{contract_text()}\n\n{END}{after}"


def main(argv: Sequence[str]) -> int:
    """Update the page of this name. Return the exit status: 0 for success, 2 without such a page or its markers."""
    if len(argv) != 1:
        print("usage: python -m gradflow.testing.contract_docs PAGE", file=sys.stderr)
        return 2
    path = Path(argv[0])
    try:
        page = path.read_text(encoding="utf-8")
        path.write_text(update(page), encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"gradflow.testing.contract_docs: {path}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
