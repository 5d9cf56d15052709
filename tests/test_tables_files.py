"""Files that are no text, damaged, too large or none at all are refused with what to do, in little memory."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from table_files import refusal, written

from gradflow.tables import read_table


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    """Write a file."""
    return partial(written, tmp_path)


REFUSED = {
    "a zero byte": (b"a,b\n1,2\n3,\x004\n", ["line 3", "zero byte"]),
    "a zero byte far below": (b"a,b\n" + b"1,2\n" * 30_000 + b"\x00", ["line 30002", "zero byte"]),
    "UTF-16 without a mark": ("a,b\n1,2\n".encode("utf-16-le"), ["line 1", "UTF-8"]),
    "UTF-16 that is cut off": ("a,b\n1,2\n".encode("utf-16")[:-1], ["UTF-16", "cut off"]),
    "Latin-1": (
        "a,b\n1,x\n2,caf\xe9\n".encode("latin-1"),
        ["line 3", "0xE9", "iconv -f WINDOWS-1252"],
    ),
    "Latin-1 far below": (b"a,b\n" + b"1,x\r\n" * 30_000 + b"2,\xfc\n", ["line 30002", "0xFC"]),
    "a cell of 1 MB": (b"a,b\n1,x\n2," + b"y" * 1_000_000, ["line 3", "131,072 characters"]),
    "a quoted cell of 1 MB": (b'a,b\n1,x\n2,"' + b"y\n" * 500_000 + b'"\n', ["line 3", "131,072 characters"]),
    "a line without end": (b"a,b\n1,2\n" + b"y," * 1_000_000, ["line 3", "1,048,576 characters"]),
    "a line without end far below": (b"a,b\n" + b"1,2\n" * 30_000 + b"y" * 2_000_000, ["line 30002", "characters"]),
    "XML": ('\n<?xml version="1.0"?><a/>', ["XML"]),
    "a damaged gzip file": (gzip.compress(b"a,b\n" + b"1,2\n" * 10_000)[:-20], ["damaged or cut off"]),
    "a gzip file with a wrong checksum": (gzip.compress(b"a,b\n1,2\n")[:-8] + b"01234567", ["damaged"]),
    "Excel in gzip": (gzip.compress(b"PK\3\4" + bytes(100)), ["Excel"]),
    "gzip in gzip": (gzip.compress(gzip.compress(b"a,b\n1,2\n")), ["decompress"]),
    "bzip2": (bz2.compress(b"a,b\n1,2\n"), ["decompress"]),
    "xz": (lzma.compress(b"a,b\n1,2\n"), ["decompress"]),
    "JSON": ('\ufeff[\n  {"a": 1, "b": 2}\n]', ["JSON"]),
    "lines of JSON": ('{"a": 1, "b": 2}\n{"a": 3, "b": 4}\n', ["JSON"]),
    "PDF": (b"%PDF-1.4\n1 0 obj\n<<\n", ["PDF"]),
    "ARFF": ("@RELATION r\n@ATTRIBUTE a NUMERIC\n@DATA\n1\n", ["ARFF"]),
    "a pointer of Git LFS": ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", ["git lfs pull"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_table_is_refused(case: str, write: Callable[[str | bytes], Path]) -> None:
    content, expected = REFUSED[case]
    path = write(content)
    message = refusal(path)
    assert [words for words in [str(path), *expected] if words not in message] == []


def test_a_folder_and_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "not a regular file" in refusal(tmp_path)
    assert "No such file" in refusal(tmp_path / "absent.csv")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are those of POSIX")
def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    assert "not a regular file" in refusal(tmp_path / "pipe.csv")


@pytest.mark.parametrize("byte", [b"\0", b"1", b","])
def test_a_file_that_grows_when_it_is_read_is_refused_in_little_memory(
    byte: bytes, write: Callable[[bytes], Path]
) -> None:
    """A gzip file of 50 kB that holds 50 MB."""
    path = write(gzip.compress(b"a,b\n1,2\n" + byte * 50_000_000))
    tracemalloc.start()
    try:
        assert "line 3" in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_long_rows_are_read_a_few_at_a_time(write: Callable[[bytes], Path]) -> None:
    rows = b"".join(b"%d,%b\n" % (i, b"y" * 100_000) for i in range(500))
    path = write(gzip.compress(b"a,b\n" + rows, 1))
    tracemalloc.start()
    try:
        assert len(read_table(path, ignore=["b"])) == 500
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


def test_a_table_larger_than_memory_is_refused(monkeypatch: pytest.MonkeyPatch, write: Callable[[bytes], Path]) -> None:
    monkeypatch.setattr("gradflow.tables.csv_reading.physical_memory", lambda: 1e6)
    assert "more memory" in refusal(write(gzip.compress(b"a,b\n" + b"1,2\n" * 100_000)))


@pytest.mark.slow
def test_a_table_takes_little_more_memory_than_its_values(write: Callable[[str], Path]) -> None:
    rows = [f"{i * 7 % 1000},{i / 8},{'' if i % 10 else i},level {i % 50}" for i in range(50_000)]
    path = write("a,b,c,d\n" + "\n".join(rows))
    tracemalloc.start()
    try:
        table = read_table(path)
        values = sum(column.values.nbytes for column in table.columns)
        assert tracemalloc.get_traced_memory()[1] < 2 * values + 5_000_000
    finally:
        tracemalloc.stop()
