"""Saved states: trees of tensors and plain values in one file, in the safetensors format.

The tensors of a tree are those of the file, so other programs read them. One entry of the file's metadata, "gradflow",
holds as JSON the version of the format, the tree, which names its tensors, and a checksum:

    {"gradflow": 1, "tree": {"dict": [["lr", 0.1], ["weight", {"tensor": "weight"}]]}, "checksum": "89abcdef"}

Lists, strings, finite numbers, bools and None are those of JSON. An object with one key is what JSON lacks: a "dict"
(as pairs, since its keys may be integers), a "tuple", a "float" that is not finite, a "tensor".
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Iterable
from typing import Any

from gradflow.backend.registry import DeviceLike, get_backend
from gradflow.environment import imported_extra
from gradflow.files import FilePath, open_file, write_file
from gradflow.ops import tensor
from gradflow.tensor import Tensor
from gradflow.text import printable

FORMAT = 1
"""The version of the tree's description. A file of a later version is refused."""
DEPTH = 100
"""How deep a tree may be nested."""
_KEY = "gradflow"
_ENTRY = re.compile(r'"gradflow":|"checksum":"[0-9a-f]{8}"')
"""What is still found in metadata whose entry is damaged, and not in that of other programs."""
_BITS = 1024
"""The most bits of an integer: Python may refuse to read longer decimal numbers."""
_LONGEST = 50_000_000
"""The most characters of the entry, half of what a safetensors header may have."""
_DTYPES = {
    "BOOL": "bool", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64", "U8": "uint8", "U16": "uint16",
    "U32": "uint32", "U64": "uint64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
}  # fmt: skip
"""gradflow's dtypes by their names in the file."""


class InvalidFileError(ValueError):
    """A file is not one that `gradflow.load` reads; the message names the file and says why, on one line.

    For a pickle and a zip archive, such as PyTorch's `.pt` files, two more lines convert a file of `torch.save`.

    >>> import gradflow as gf
    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "state.safetensors")
    ...     gf.save(path, {"weight": gf.ones(2)})
    ...     os.truncate(path, os.path.getsize(path) - 1)
    ...     try:
    ...         gf.load(path)
    ...     except gf.InvalidFileError:
    ...         print("damaged")
    damaged
    """

    __module__ = "gradflow"


def save(path: FilePath, tree: Any) -> None:
    """Write a tree to a file, which is then whole, or what it was before if there is an error.

    path: the file; by custom, its name ends in ".safetensors".
    tree: nested dicts (with keys that are strings or integers), lists and tuples of tensors, numbers, strings, bools
    and None; for example the `state_dict()` of a module, an optimizer or a generator. An instance of a subclass is
    saved as what it extends: a named tuple as a tuple.

    A tensor is saved without its gradient and graph. One that appears several times is saved once, and loads as one.
    Equal trees give equal bytes. A link at `path` is replaced. Raises TypeError or ValueError, which name the place in
    the tree, for what cannot be saved; OSError, which names the file; ModuleNotFoundError without safetensors.

    >>> import tempfile
    >>> import gradflow as gf
    >>> model = gf.nn.Linear(2, 1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     gf.save(f"{folder}/state.safetensors", {"model": model.state_dict(), "epoch": 3})
    ...     state = gf.load(f"{folder}/state.safetensors")
    >>> state["epoch"]
    3
    >>> model.load_state_dict(state["model"])
    Incompatible(missing_keys=[], unexpected_keys=[])
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"save takes a path and then a tree; got {type(path).__name__} as the path")
    write_file(path, to_bytes(tree))


def load(path: FilePath, device: DeviceLike | None = None) -> Any:
    """The tree that `save` wrote to the file `path`, with its tensors on `device` (default: the current device).

    The tensors have the bits that were saved, and do not require grad. float16 and bfloat16 load as float32, which
    holds the same numbers, on a device that lacks them. A safetensors file of another program loads as a dict of its
    tensors by name. Nothing in a file is executed.

    Raises InvalidFileError for a file that is damaged, written by a newer gradflow or in another format; OSError where
    it cannot be read; ModuleNotFoundError without safetensors; and like `gradflow.tensor` for a device or a dtype that
    does not exist here.

    >>> import gradflow as gf
    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "state.safetensors")
    ...     gf.save(path, {"weight": gf.tensor([1.0, 2.0]), "rates": [0.1, 0.01]})
    ...     gf.load(path, device="cpu")
    {'weight': tensor([1., 2.], dtype=float32, device=cpu), 'rates': [0.1, 0.01]}
    """
    get_backend(device)
    try:
        with open_file(path) as file:
            start = file.read(9)  # so that the rest of a long file of another kind is not read
            if start[8:] != b"{" or int.from_bytes(start[:8], "little") > os.fstat(file.fileno()).st_size:
                raise InvalidFileError(f"{path} is not a whole safetensors file{_guess(start)}")
            content = start + file.read()
    except ValueError as error:
        convert = _convert(os.fspath(path)) if isinstance(error, InvalidFileError) and _guess(start) else ""
        raise InvalidFileError(printable(str(error)) + convert) from None
    return from_bytes(content, str(path), device)


def to_bytes(tree: Any) -> bytes:
    """The content of the file that `save` writes."""
    numpy = _safetensors("gradflow.save").numpy
    arrays: dict[str, Any] = {}
    description = _described(tree, (), arrays, {})
    text = _json(description)
    parts = [(name, a.dtype.name, a.shape, a.reshape(-1).view("uint8")) for name, a in arrays.items()]
    entry = _json({_KEY: FORMAT, "tree": description, "checksum": _checksum(text, parts)})
    if len(_json(entry)) > _LONGEST:
        raise ValueError(
            f"a tree without its tensors takes at most {_LONGEST} characters: save long lists of numbers as tensors"
        )
    return bytes(numpy.save(arrays, {_KEY: entry}))


def from_bytes(content: bytes, name: str, device: DeviceLike | None = None) -> Any:
    """The tree in the content of a file, like `load`; `name` is what errors call the file."""
    try:
        return _tree(content, device)
    except InvalidFileError as error:
        raise InvalidFileError(f"{printable(name)} {error}") from None


# ---------------------------------------------------------------------- writing


def _described(x: Any, path: tuple[Any, ...], arrays: dict[str, Any], names: dict[int, str]) -> Any:
    """The description of a tree; collects its tensors as NumPy arrays in `arrays`, and their names by id."""
    if len(path) > DEPTH:
        raise ValueError(f"a tree is saved up to {DEPTH} levels deep; this one goes on at {_place(path[:3])}...")
    if x is None or isinstance(x, (bool, str)):
        return x
    if isinstance(x, int):
        if x.bit_length() > _BITS:
            raise ValueError(f"{_place(path)} is an integer of more than {_BITS} bits: save it as a string")
        return x
    if isinstance(x, float):
        return float(x) if math.isfinite(x) else {"float": repr(float(x))}
    if isinstance(x, Tensor):
        if id(x) not in names:
            names[id(x)] = _name(path, arrays)
            arrays[names[id(x)]] = x.backend.to_host(x.array)
        return {"tensor": names[id(x)]}
    if isinstance(x, (list, tuple)):
        parts = [_described(part, (*path, i), arrays, names) for i, part in enumerate(x)]
        return parts if isinstance(x, list) else {"tuple": parts}
    if isinstance(x, dict):
        for key in x:
            if not isinstance(key, (str, int)) or isinstance(key, bool):
                raise TypeError(
                    f"the keys of a dict are saved if they are strings or integers; {_place(path)} has {key!r}"
                )
        return {"dict": [[key, _described(part, (*path, key), arrays, names)] for key, part in x.items()]}
    raise TypeError(f"{_place(path)} has the type {type(x).__name__}, which is not saved: {_fix(x)}")


def _place(path: tuple[Any, ...]) -> str:
    return f"tree{''.join(f'[{key!r}]' for key in path)}"


def _fix(x: Any) -> str:
    if hasattr(x, "state_dict"):
        return "pass its state_dict()"
    if hasattr(x, "__array__"):
        return "convert it with gradflow.tensor(...), or a single number with .item()"
    if callable(x):
        return "leave it out, and save the numbers that it was made from"
    return "save numbers, strings, bools, None, tensors, and dicts, lists and tuples of them"


def _name(path: tuple[Any, ...], taken: dict[str, Any]) -> str:
    """The name of a tensor in the file: its keys, joined by dots as in a state dict."""
    name = ".".join(map(str, path)).encode("utf-8", "backslashreplace").decode() or "tensor"
    while name in taken or name == "__metadata__":
        name += "'"
    return name


def _json(x: Any) -> str:
    return json.dumps(x, separators=(",", ":"), allow_nan=False)


def _checksum(tree: str, tensors: Iterable[tuple[str, str, Iterable[int], Any]]) -> str:
    """The CRC-32 of a tree's description and of the name, dtype, shape and bytes of each tensor."""
    total = zlib.crc32(tree.encode())
    for name, dtype, shape, data in sorted(tensors, key=lambda t: t[0]):
        total = zlib.crc32(data, zlib.crc32(_json([name, dtype, list(shape)]).encode(), total))
    return f"{total:08x}"


# ---------------------------------------------------------------------- reading


def _tree(content: bytes, device: DeviceLike | None) -> Any:
    """The tree in a file. Raises InvalidFileError with a message that goes on after the file's name."""
    safetensors = _safetensors("gradflow.load")
    try:
        tensors = dict(safetensors.deserialize(content))
    except safetensors.SafetensorError as error:
        raise InvalidFileError(f"is not a whole safetensors file{_guess(content)}: {str(error)[:160]}") from None
    header = json.loads(str(content[8 : 8 + int.from_bytes(content[:8], "little")], "utf-8"))
    metadata = header.pop("__metadata__", None) or {}
    for name, part in tensors.items():
        if part["dtype"] not in _DTYPES:
            raise InvalidFileError(f"has a tensor {name!r} of {part['dtype']}, a dtype that gradflow lacks")
    if _KEY not in metadata and not any(map(_ENTRY.search, [*metadata, *metadata.values()])):
        return {name: _tensor(tensors[name], device) for name in header}
    try:
        entry = json.loads(metadata[_KEY])
        version, checksum, description = entry[_KEY], entry["checksum"], entry["tree"]
        text = _json(description)
    except (KeyError, TypeError, ValueError, RecursionError):
        raise InvalidFileError("is damaged: its description of the saved tree cannot be read") from None
    if isinstance(version, int) and version > FORMAT:
        raise InvalidFileError(
            f"was written by a newer gradflow: its format is {version}, this gradflow reads {FORMAT}; upgrade gradflow"
        )
    parts = [(name, _DTYPES[part["dtype"]], part["shape"], part["data"]) for name, part in tensors.items()]
    if version != FORMAT or checksum != _checksum(text, parts):
        raise InvalidFileError("is damaged: its checksum does not fit its content")
    loaded: dict[str, Tensor] = {}
    tree = _built(description, tensors, loaded, device, 0)
    unused = sorted(set(tensors) - set(loaded))
    if unused:
        raise InvalidFileError(f"has a tensor that its tree does not use: {unused[0]!r}")
    return tree


def _built(
    description: Any, tensors: dict[str, Any], loaded: dict[str, Tensor], device: DeviceLike | None, depth: int
) -> Any:
    """A part of the tree from its description; `loaded` collects the tensors."""
    if depth > DEPTH:
        raise InvalidFileError(f"has a tree that is more than {DEPTH} levels deep")

    def built(part: Any) -> Any:
        return _built(part, tensors, loaded, device, depth + 1)

    match description:
        case None | bool() | int() | float() | str():
            return description
        case list():
            return [built(part) for part in description]
        case {"tuple": list(parts)}:
            return tuple(built(part) for part in parts)
        case {"float": "nan" | "inf" | "-inf" as number}:
            return float(number)
        case {"tensor": str(name)} if name in tensors:
            if name not in loaded:
                loaded[name] = _tensor(tensors[name], device)
            return loaded[name]
        case {"dict": list(pairs)}:
            out: dict[str | int, Any] = {}
            for pair in pairs:
                match pair:
                    case [str() | int() as key, part] if not isinstance(key, bool) and key not in out:
                        out[key] = built(part)
                    case _:
                        break
            else:
                return out
    raise InvalidFileError(f"has a tree with a part that gradflow does not write: {_json(description)[:80]}")


def _tensor(part: dict[str, Any], device: DeviceLike | None) -> Tensor:
    """A tensor from its dtype, shape and bytes."""
    name, cpu = _DTYPES[part["dtype"]], get_backend("cpu")
    supported = get_backend(device).supports(name)
    values = cpu.asarray(memoryview(part["data"]))  # of uint8
    if name == "bool":
        values = values != 0
    elif name != "bfloat16":
        values = values.view(name)
    elif supported:
        values = values.view(cpu.native_dtype(name))
    else:
        values = (values.view("uint16").astype("uint32") << 16).view("float32")
    if not supported and name in ("float16", "bfloat16"):
        values = values.astype("float32")
    try:
        values = values.reshape(part["shape"])
    except (OverflowError, ValueError):  # more than 64 axes, or longer ones
        raise InvalidFileError(f"has a tensor whose shape NumPy cannot hold: {str(part['shape'])[:80]}") from None
    return tensor(values, device=device)


def _guess(content: bytes) -> str:
    """What a file in another format may be."""
    if content.startswith(b"PK"):
        return ", but a zip archive, as numpy.savez and torch.save write it"
    return ", but perhaps a pickle, which gradflow does not load" if content.startswith(b"\x80") else ""


def _convert(path: str) -> str:
    """Two lines that convert a file of `torch.save`, after those that announce them."""
    converted = os.path.splitext(path)[0] + ".safetensors"
    return (
        "; where PyTorch is installed, these two lines convert a state dict that torch.save has written:"
        "\n    import torch, safetensors.torch"
        f"\n    safetensors.torch.save_file(torch.load({path!r}, map_location='cpu'), {converted!r})"
    )


def _safetensors(what: str) -> Any:
    imported_extra("safetensors.numpy", "safetensors", "train", what)
    return imported_extra("safetensors", "safetensors", "train", what)
