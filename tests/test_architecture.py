"""The page on the architecture names files that exist, in the order in which they may import each other."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import gradflow as gf
from tests.test_imports import FILES, LEVELS

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")
ROWS = re.findall(r"^\| (`gradflow/.+?) \|", PAGE, re.M)


def names(row: str) -> list[str]:
    return [path.removeprefix("gradflow/").rstrip("/").removesuffix(".py") for path in re.findall(r"`([^`]+)`", row)]


def test_every_path_exists() -> None:
    paths = re.findall(r"`((?:gradflow|backends|tests)/[\w./]*)`", PAGE) + re.findall(r"\]\(([\w./-]+)\)", PAGE)
    assert len(paths) > 20
    missing = [p for p in paths if not (ROOT / p).exists() and not (ROOT / "docs" / p).exists()]
    assert missing == []


def test_every_package_is_in_the_table() -> None:
    told = {name for row in ROWS for name in names(row)}
    packages = {name.split(".")[1] for name in FILES if name.count(".")}
    assert packages - told == {"__main__"}


def test_the_table_is_in_the_order_of_imports() -> None:
    levels = [[level for name, level in LEVELS.items() if name.split(".")[0] in names(row)] for row in ROWS]
    for above, below in pairwise(levels):
        assert min(above) >= min(below)
        assert max(above) >= max(below)


def test_the_sample_of_the_table_of_operations_is_in_the_code() -> None:
    (entry,) = re.findall(
        r"^multiply = .*?^\)$", (ROOT / "gradflow/ops/elementwise.py").read_text("utf-8"), re.M | re.S
    )
    assert f"```python\n{entry}\n```" in PAGE
    assert re.sub(r"\s", "", entry) in re.sub(r"\s", "", README)


def test_every_public_name_exists() -> None:
    for name in set(re.findall(r"`gradflow\.([\w.]+)`", PAGE)) - {"backend", "dtypes", "environment", "testing"}:
        found = gf
        for part in name.split("."):
            found = getattr(found, part)


def test_the_picture_is_a_valid_svg_with_a_description() -> None:
    root = ElementTree.parse(ROOT / "docs" / "architecture.svg").getroot()
    assert root.find("{http://www.w3.org/2000/svg}desc") is not None
