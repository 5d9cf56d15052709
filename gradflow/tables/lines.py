"""The lines of a text file, which may be compressed by gzip, in UTF-8 or UTF-16, or no text at all."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO, cast

from gradflow.data.inputs import DataError
from gradflow.data.reading import reading
from gradflow.files import FilePath, open_file

GZIP = b"\x1f\x8b"
LONGEST = 1 << 20
"""The most characters of a line, or a few more."""

_BLOCK = 1 << 16

_EXCEL = "an Excel workbook or another zip archive: export the table as CSV"
_HTML = "HTML or XML, not CSV: perhaps an error page in place of a download"
_JSON = "JSON, not CSV: export the table as CSV"
_COMPRESSED = "compressed in a way that is not read: decompress it, or compress it by gzip, once"
_FORMATS = {
    b"PK\x03\x04": _EXCEL, b"PK\x05\x06": _EXCEL, b"\xd0\xcf\x11\xe0": _EXCEL,
    GZIP: _COMPRESSED, b"BZh9": _COMPRESSED, b"\xfd7zXZ": _COMPRESSED, b"\x28\xb5\x2f\xfd": _COMPRESSED,
    b"<!doctypehtml": _HTML, b"<html": _HTML, b"<?xml": _HTML, b"<!--": _HTML,
    b'{"': _JSON, b"[{": _JSON, b"[[": _JSON,
    b"@relation": "ARFF, not CSV: export the table as CSV",
    b"%PDF": "PDF, not CSV: export the table as CSV",
    b"versionhttps://git-lfs": "a pointer to a file that is not here: git lfs pull downloads it",
}  # fmt: skip
"""The first bytes of other files, as they are, or in lower case and without white space; and what these files are."""

_UTF8 = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class Lines:
    """The lines of a text, each with a line feed at its end; they are read in blocks. `characters`: how many so far."""

    def __init__(self, file: io.TextIOBase, path: FilePath) -> None:
        self.characters = 0
        self._lines = itertools.chain.from_iterable(self._blocks(file, path))

    def __iter__(self) -> Iterator[str]:
        return self._lines

    def _blocks(self, file: io.TextIOBase, path: FilePath) -> Iterator[Iterable[str]]:
        """Yield some lines, then the next ones. Raises DataError for a zero byte and a line that is too long."""
        number, rest = 1, ""
        while block := file.read(_BLOCK):
            self.characters += len(block)
            whole, feed, rest = (rest + block).rpartition("\n")
            if "\0" in block:
                number += (whole + feed + rest).partition("\0")[0].count("\n")
                raise DataError(f"{path}, line {number}: a zero byte: the file is damaged, or not saved as UTF-8")
            if len(rest) > LONGEST:  # longer than a block: this one had no line feed
                raise DataError(f"{path}, line {number} has more than {LONGEST:,} characters: is this a CSV file?")
            number += whole.count("\n") + len(feed)
            yield io.StringIO(whole + feed)
        yield [rest] if rest else []


@contextlib.contextmanager
def open_lines(path: FilePath) -> Iterator[Lines]:
    """Yield the lines of a file, in memory for some of them; they may end in any of the usual ways.

    Raises DataError, in the `with`, for a file that is no regular file or no text, with the line and the byte where it
    is not UTF-8.
    """
    with reading(path):
        try:
            with open_file(path) as raw, _text(raw, path) as text:
                yield Lines(text, path)
        except UnicodeDecodeError as error:
            raise _undecodable(path, error) from None


def _text(raw: BinaryIO, path: FilePath, errors: str = "strict") -> io.TextIOBase:
    """Return the text in a file. Raises DataError for known formats that are no text."""
    file = cast(io.BufferedReader, raw)
    if file.peek(2).startswith(GZIP):
        file = io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=raw)))
    head = file.peek(64)
    text = b"".join(head.removeprefix(_UTF8).lower().split())
    for first, what in _FORMATS.items():
        if head.startswith(first) or text.startswith(first):
            raise DataError(f"{path} is {what}")
    if head.startswith(_UTF8):
        file.read(len(_UTF8))
    return io.TextIOWrapper(file, "utf-16" if head.startswith(_UTF16) else "utf-8", errors)


def _undecodable(path: FilePath, error: UnicodeDecodeError) -> DataError:
    """Return the error of a file that is not in its encoding."""
    if error.encoding.startswith("utf-16"):
        return DataError(f"{path} begins as UTF-16, but is damaged or cut off: {error.reason}")
    with open_file(path) as raw, _text(raw, path, "surrogateescape") as text:
        for number, line in enumerate(Lines(text, path), 1):
            if found := re.search("[\udc80-\udcff]", line):
                what = f"line {number}: the byte 0x{ord(found[0]) - 0xDC00:02X} is not UTF-8"
                advice = "save the file as UTF-8; for a file in Windows-1252: iconv -f WINDOWS-1252 -t UTF-8"
                return DataError(f"{path}, {what}: {advice}")
    return DataError(f"{path} was changed while it was read")
