"""The Korean README has the commands, code, numbers, links and headings of the English one."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
KOREAN = (ROOT / "docs" / "README.ko.md").read_text(encoding="utf-8")
CODE = re.compile(r"^ *```(\w+)\n(.*?)```$", re.DOTALL | re.MULTILINE)


def paragraphs(page: str) -> list[str]:
    """The paragraphs, lists and tables outside of code."""
    return re.split(r"\n(?:\s*\n)+", CODE.sub("", page).strip())


def test_commands_and_snippets_are_equal_but_for_comments() -> None:
    english, korean = ([re.sub(r" +# .*", "", text) for _, text in CODE.findall(page)] for page in (ENGLISH, KOREAN))
    assert korean == english


def test_comments_have_the_same_numbers() -> None:
    comments = (re.findall(r" +# (.*)", "".join(text for _, text in CODE.findall(page))) for page in (ENGLISH, KOREAN))
    english, korean = ([re.findall(r"[\d.-]*\d", comment) for comment in page] for page in comments)
    assert korean == english


def test_the_code_in_the_text_is_equal() -> None:
    english, korean = (sorted(re.findall(r"`([^`]+)`", CODE.sub("", page))) for page in (ENGLISH, KOREAN))
    assert korean == english


def test_the_numbers_are_equal() -> None:
    english, korean = (sorted(re.findall(r"\d[\d.,:-]*\d|\d", CODE.sub("", page))) for page in (ENGLISH, KOREAN))
    assert korean == english


def test_the_links_are_equal_and_lead_to_files() -> None:
    english = [link for link in re.findall(r"\]\(([^)]+)\)", ENGLISH) if link != "docs/README.ko.md"]
    korean = re.findall(r"\]\(([^)]+)\)", KOREAN)
    paths = [(ROOT / "docs" / link).resolve() for link in korean]
    assert paths == [(ROOT / link).resolve() for link in english]
    assert all(path.exists() for path in paths)


def test_the_headings_and_tables_are_as_many() -> None:
    for pattern in (r"^#+ ", r"^\|", r"^ *- "):
        english, korean = (len(re.findall(pattern, CODE.sub("", page), re.MULTILINE)) for page in (ENGLISH, KOREAN))
        assert english - (pattern == r"^ *- ") == korean, pattern  # the English list links the Korean page


def test_the_text_is_korean() -> None:
    for paragraph in paragraphs(KOREAN)[1:]:
        assert re.search("[가-힣]", paragraph), paragraph
