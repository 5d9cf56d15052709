"""Damaged files for tests: random mutations of a valid one.

    for what, content in mutants(valid, 300):
        ...  # loading it raises the proper error, or gives the values of the valid file; `what` says what was done

Any content has bytes changed, removed, inserted and moved. In a safetensors file, mutations also change the header,
and in it the JSON of metadata, such that it stays valid JSON of the right length. `changed_tree` changes what a file
holds before it is written.
"""

from __future__ import annotations

import copy
import json
import math
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import gradflow as gf

STRANGE = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, 1e300, "", "x", "nan", "F32", "BOOL",
    "U64", [], [0], [[]], {}, {"dict": []}, {"tensor": "x"}, {"float": "nan"}, {"tuple": [1]}, "\u20ac", "../../x",
    [0] * 100,
)  # fmt: skip
"""Values that replace those of JSON."""


def mutants(content: bytes, n: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Mutations of a file, each with what was done, the same for the same seed.

    None of them is the file of a safetensors header whose metadata is gone: that is another valid file.
    """
    draw = random.Random(seed)
    ways: list[Callable[[bytes, random.Random], bytes]] = [
        flip_bits, flip_bits, truncate, insert, remove, overwrite, exchange, repeat, change_number,
    ]  # fmt: skip
    if content[8:9] == b"{" and int.from_bytes(content[:8], "little") <= len(content):
        ways += [edit_header, edit_header, edit_header, edit_header_as_text, change_length]
    for _ in range(n):
        way = draw.choice(ways)
        yield way.__name__, way(content, draw)


# ---------------------------------------------------------------------- bytes


def _slice(content: bytes, draw: random.Random) -> tuple[int, int]:
    start = draw.choice((draw.randrange(len(content) + 1), draw.randrange(min(len(content), 200) + 1)))
    return start, min(len(content), start + draw.choice((1, 1, 2, 7, 8, 64, len(content))))


def flip_bits(content: bytes, draw: random.Random) -> bytes:
    out = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        start, _ = _slice(content, draw)
        out[start % len(out)] ^= 1 << draw.randrange(8)
    return bytes(out)


def truncate(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.choice((0, 1, 7, 8, 9, len(content) - 1, draw.randrange(len(content))))]


def insert(content: bytes, draw: random.Random) -> bytes:
    start, _ = _slice(content, draw)
    return content[:start] + draw.choice((b"\0", b" ", b"\n", b"{", b"PK\3\4", draw.randbytes(8))) + content[start:]


def remove(content: bytes, draw: random.Random) -> bytes:
    start, stop = _slice(content, draw)
    return content[:start] + content[stop:]


def overwrite(content: bytes, draw: random.Random) -> bytes:
    start, stop = _slice(content, draw)
    n = stop - start
    return content[:start] + draw.choice((bytes(n), b"\xff" * n, b"0" * n, draw.randbytes(n))) + content[stop:]


def exchange(content: bytes, draw: random.Random) -> bytes:
    (a, b), (c, d) = sorted((_slice(content, draw), _slice(content, draw)))
    b = min(b, c)
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def repeat(content: bytes, draw: random.Random) -> bytes:
    start, stop = _slice(content, draw)
    return content[:stop] + content[start:]


def change_number(content: bytes, draw: random.Random) -> bytes:
    """Replace a decimal number in a text by another."""
    found = list(re.finditer(rb"-?\d+", content[:100_000]))
    if not found:
        return flip_bits(content, draw)
    number = draw.choice(found)
    new = draw.choice((b"0", b"-1", b"1", b"7", b"4294967296", b"18446744073709551616", b"1e999", b"nan", b"9" * 5000))
    return content[: number.start()] + new + content[number.end() :]


# ---------------------------------------------------------------------- the header of a safetensors file


def change_length(content: bytes, draw: random.Random) -> bytes:
    """Change the length of the header."""
    n = int.from_bytes(content[:8], "little")
    new = draw.choice(
        (0, 1, 2, n - 1, n + 1, n + 8, len(content), 10**8, 10**8 + 1, 2**40, 2**63, 2**64 - 1, 2**64 - 8)
    )
    return new.to_bytes(8, "little") + content[8:]


def _split(content: bytes) -> tuple[str, bytes]:
    n = 8 + int.from_bytes(content[:8], "little")
    return content[8:n].decode(), content[n:]


def _joined(header: str, data: bytes) -> bytes:
    encoded = header.encode("utf-8", "surrogatepass")
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded + data


def edit_header_as_text(content: bytes, draw: random.Random) -> bytes:
    """Change bytes of the header, and its length accordingly."""
    header, data = _split(content)
    way = draw.choice((flip_bits, insert, remove, repeat, exchange, change_number, nest))
    return _joined(way(header.encode(), draw).decode("utf-8", "replace"), data)


def nest(content: bytes, draw: random.Random) -> bytes:
    """Insert lists or dicts nested deeply."""
    start, _ = _slice(content, draw)
    n = draw.choice((10, 200, 100_000))
    return content[:start] + draw.choice((b"[" * n + b"]" * n, b'{"a":' * n + b"1" + b"}" * n)) + content[start:]


def edit_header(content: bytes, draw: random.Random) -> bytes:
    """Change a value or a key of the header's JSON or of the JSON in its metadata."""
    text, data = _split(content)
    header = json.loads(text)
    metadata = header.get("__metadata__")
    inner = bool(metadata) and draw.random() < 0.6
    if inner:
        key = draw.choice(sorted(metadata))
        try:
            document = json.loads(metadata[key])
        except ValueError:
            document = [metadata[key]]
        metadata[key] = json.dumps(edit_json(document, draw), separators=(",", ":"))
    else:
        kept = header.pop("__metadata__", None)
        header = edit_json(header, draw)
        if kept is not None and isinstance(header, dict):
            header = {"__metadata__": kept, **header}
    return _joined(json.dumps(header, separators=(",", ":")), data)


def edit_json(document: Any, draw: random.Random) -> Any:
    """Change one place in JSON: replace, remove, repeat or rename what is there, or exchange it with another place."""
    places = list(_places(document))
    if not places:
        return draw.choice(STRANGE)
    parent, key = draw.choice(places)
    how = draw.choice(("replace", "remove", "repeat", "rename", "exchange", "wrap"))
    if how == "remove":
        del parent[key]
    elif how == "repeat" and isinstance(parent, list):
        parent.insert(key, parent[key])
    elif how == "rename" and isinstance(parent, dict):
        parent[draw.choice([*parent, "x", key + "x", ""])] = parent.pop(key)
    elif how == "exchange":
        other, there = draw.choice(places)
        parent[key], other[there] = json.loads(json.dumps([other[there], parent[key]]))
    elif how == "wrap":
        parent[key] = draw.choice(([parent[key]], {"tuple": [parent[key]]}, {"x": parent[key]}))
    else:
        parent[key] = json.loads(json.dumps(draw.choice(STRANGE)))
    return document


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    keys = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        yield document, key
        yield from _places(document[key])


# ---------------------------------------------------------------------- trees

PARTS = [
    None, True, 0, -1, 1, 3, 1 << 70, 0.0, -1.5, math.nan, math.inf, "", "relu", "x\n\x1b[31m", "y" * 1000, [], [[]],
    [0, 1, 2], ["a", "b", "c"], {}, {"kind": "table"}, (), (1, 2), gf.zeros(()), gf.zeros((0, 3)),
]  # fmt: skip


def changed_tree(tree: Any, random: np.random.Generator) -> Any:
    """A tree with one to three parts replaced, removed, repeated or swapped."""
    tree = copy.deepcopy(tree)
    for _ in range(random.integers(1, 4)):
        part, depth = tree, 0
        while True:
            keys = list(part) if isinstance(part, dict) else list(range(len(part)))
            if not keys:
                break
            key = keys[random.integers(len(keys))]
            if isinstance(part[key], (dict, list)) and random.random() < 0.8:
                part, depth = part[key], depth + 1
                continue
            how = random.integers(4)
            if how == 0:
                del part[key]
            elif how == 1 and isinstance(part, list):
                part.append(part[key])
            elif how == 2:
                part[key], part[keys[0]] = part[keys[0]], part[key]
            else:
                part[key] = PARTS[random.integers(len(PARTS))]
            break
    return tree
