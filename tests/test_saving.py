"""`gradflow.save` and `gradflow.load`: trees of tensors and plain values in one file. Pickled tensors."""

from __future__ import annotations

import collections
import io
import json
import math
import os
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutations import mutants

import gradflow as gf
from gradflow import nn, optim, saving
from gradflow.backend import discovery, registry
from gradflow.dtypes import DTYPES
from gradflow.saving import from_bytes, to_bytes

pytest.importorskip("safetensors", reason="safetensors, of the extra train, is not installed")
from safetensors.numpy import load as numpy_load
from safetensors.numpy import save as numpy_save

posix = pytest.mark.skipif(os.name != "posix", reason="device files and files with holes are those of POSIX")


def equal(a: Any, b: Any) -> bool:
    """Whether two trees are equal: types, order of keys, signs of zeros, and the bits of tensors."""
    if isinstance(a, gf.Tensor) and isinstance(b, gf.Tensor):
        x, y = a.detach().numpy(), b.detach().numpy()
        return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return equal(list(a), list(b)) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return repr(a) == repr(b)


def through_bytes(tree: Any) -> Any:
    return from_bytes(to_bytes(tree), "file")


@pytest.fixture
def removing_devices() -> Iterator[Callable[[str, type], None]]:
    """A function that registers a device, which is removed at the end of the test."""
    names = []

    def register(name: str, backend: type) -> None:
        names.append(name)
        discovery._registered[name] = backend

    yield register
    for name in names:
        discovery._registered.pop(name, None)
        for device in [d for d in registry._backends if d.type == name]:
            del registry._backends[device]


@pytest.fixture
def halves(removing_devices: Callable[[str, type], None]) -> str:
    """The name of a device that has bfloat16."""
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes, of the extra half, is not installed")

    class Halves(type(gf.get_backend("cpu"))):  # type: ignore[misc]
        name = "halves"

        def find_dtypes(self, namespace: Any) -> dict[str, Any]:
            return {**super().find_dtypes(namespace), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

    removing_devices("halves", Halves)
    return "halves"


# ---------------------------------------------------------------------- what comes back


def test_a_tree_comes_back(device: str, tmp_path: Path) -> None:
    tree = {
        "weights": {0: gf.ones((2, 3)), 1: gf.tensor(-0.0), -7: {"": gf.zeros(1)}},
        "numbers": [1, -(2**200), 0, True, False, 0.1, 5e-324, -0.0, math.nan, math.inf, -math.inf, None],
        "texts": ["", "ä\n\0\u2028", "\ud800", "tensor", '{"tensor": "x"}'],
        "pairs": ((), (1, [gf.zeros((0, 4), dtype="int64")]), [], {}, [[]], ({},)),
        "like a description": {"tensor": "weights.0", "dict": [], "float": "nan"},
    }
    gf.save(tmp_path / "state.safetensors", tree)
    loaded = gf.load(tmp_path / "state.safetensors")
    assert equal(loaded, tree)
    assert loaded["weights"][0].device == device
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def trees() -> Any:
    """A strategy of hypothesis for trees; their tensors have any bits."""
    from hypothesis import strategies as st

    keys = st.text(max_size=3) | st.integers()
    numbers = st.integers(-(2**1023), 2**1023) | st.floats()
    tensors = st.builds(
        lambda bits, dtype, step: gf.tensor(np.array(bits, "uint64").view(dtype).reshape(2, -1).T[::step]),
        st.lists(st.integers(0, 2**64 - 1), max_size=4).filter(lambda x: len(x) % 2 == 0),
        st.sampled_from(["uint8", "int16", "float16", "float32", "float64"]), st.sampled_from([1, -1, 2]),
    )  # fmt: skip
    leaves = st.none() | st.booleans() | numbers | st.text(st.characters()) | tensors

    def containers(parts: Any) -> Any:
        return st.lists(parts) | st.lists(parts).map(tuple) | st.dictionaries(keys, parts)

    return st.recursive(leaves, containers, max_leaves=20)


def test_random_trees_come_back(random_examples: Callable[[int], Any]) -> None:
    from hypothesis import given

    @random_examples(30)
    @given(trees())
    def check(tree: Any) -> None:
        content = to_bytes(tree)
        loaded = from_bytes(content, "file")
        assert equal(loaded, tree)
        assert to_bytes(loaded) == content

    check()


@pytest.mark.parametrize("tree", [None, 3, "x", [], (), {}, True, math.nan])
def test_a_tree_may_be_one_value(tree: Any) -> None:
    assert equal(through_bytes(tree), tree)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_of_each_dtype_and_layout(device: str, dtype: str) -> None:
    if not gf.get_backend(device).supports(dtype):
        pytest.skip(f"{device} has no {dtype}")
    bits = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 256, (3, 4, 8), np.uint8)
    values = bits.astype(bool) if dtype == "bool" else bits.view(dtype)
    x = gf.tensor(values)
    tree = [
        x,
        x.permute_dims((2, 0, 1)),
        x[:, ::-2],
        x[0, 0, 0],
        x[1:1],
        gf.broadcast_to(x[:, :1], x.shape),
        x.flatten(),
    ]
    assert equal(through_bytes(tree), tree)
    assert all(t.dtype == dtype for t in through_bytes(tree))


def test_values_are_saved_and_gradients_are_not(device: str) -> None:
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    (x * x).sum().backward()
    leaf, computed = through_bytes([x, x * x])
    assert (leaf.requires_grad, computed.requires_grad) == (False, False)
    assert (leaf.grad, leaf.tolist(), computed.tolist()) == (None, [1.0, 2.0], [1.0, 4.0])
    leaf += 1.0  # its memory is its own
    assert leaf.tolist() == [2.0, 3.0]


def test_a_tensor_that_appears_twice_is_saved_once() -> None:
    x = gf.ones(1000)
    content = to_bytes({"a": x, "b": [x, x.detach()]})
    assert len(content) < 9000
    loaded = from_bytes(content, "file")
    assert loaded["a"] is loaded["b"][0]
    assert loaded["a"] is not loaded["b"][1]


def test_a_shared_parameter_stays_shared() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    state = through_bytes(model.state_dict())
    assert list(state) == list(model.state_dict())
    assert state["0.weight"] is state["1.weight"]
    model.load_state_dict(state)


def test_subclasses_are_saved_as_what_they_extend() -> None:
    incompatible = nn.Module().load_state_dict({})
    tree = [incompatible, collections.OrderedDict(a=1), np.float64(0.1), np.str_("x")]
    assert equal(through_bytes(tree), [([], []), {"a": 1}, 0.1, "x"])


def test_equal_trees_have_equal_bytes_and_one_entry_of_metadata() -> None:
    def tree() -> Any:
        gf.manual_seed(0)
        return {f"layer {i}": {"weight": gf.random.normal((i, 3)), "n": np.arange(i).sum().item()} for i in range(20)}

    content = to_bytes(tree())
    assert all(to_bytes(tree()) == content for _ in range(10))
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == ["gradflow"]


def test_names_of_tensors_are_those_of_a_state_dict() -> None:
    """So a file of a model's state is read by other programs; here safetensors' own function."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    found = numpy_load(to_bytes(model.state_dict()))
    assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in model.state_dict().items()}
    a, b, c, d, e, f = gf.tensor([1, 2, 3, 4, 5, 6.0])
    tree = {"a.b": a, "a": {"b": b}, "\ud800": c, "__metadata__": d, 1: e, "1": f}
    assert equal(through_bytes(tree), tree)
    assert set(numpy_load(to_bytes(tree))) == {"a.b", "a.b'", r"\ud800", "__metadata__'", "1", "1'"}
    assert set(numpy_load(to_bytes(a))) == {"tensor"}


def test_a_state_moves_between_devices(other_device: str, tmp_path: Path) -> None:
    x = gf.random.normal((3, 4))
    gf.save(tmp_path / "state", {"x": x})
    there = gf.load(tmp_path / "state", device="cpu")["x"]
    assert there.device == "cpu"
    assert there.tolist() == x.tolist()
    gf.save(tmp_path / "state", there)
    assert gf.load(tmp_path / "state").device == gf.load(tmp_path / "state", other_device).device == other_device


def test_bfloat16_keeps_its_bits(halves: str) -> None:
    every = np.arange(2**16, dtype=np.uint16)
    x = gf.tensor(every.view(np.dtype(gf.get_backend(halves).dtypes["bfloat16"])), device=halves)
    content = to_bytes(x)
    loaded = from_bytes(content, "file", halves)
    assert loaded.dtype == gf.bfloat16
    assert loaded.numpy().view(np.uint16).tolist() == every.tolist()


def test_half_floats_load_as_float32_where_they_are_missing(
    halves: str, removing_devices: Callable[[str, type], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Single(type(gf.get_backend("cpu"))):  # type: ignore[misc]
        name = "single"

        def find_dtypes(self, namespace: Any) -> dict[str, Any]:
            return {k: v for k, v in super().find_dtypes(namespace).items() if k not in ("float16", "uint64")}

    removing_devices("single", Single)
    numbers = [1.5, -0.0, 2.0**-24, math.inf, -3.140625]
    content = to_bytes([gf.tensor(numbers, dtype=d, device=halves) for d in ("float16", "bfloat16")])
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)  # as where it is not installed
    for x in from_bytes(content, "file", "single"):
        assert x.dtype == gf.float32
        assert repr(x.tolist()) == repr(numbers)
    with pytest.raises(TypeError, match="device single:0 does not support uint64"):
        from_bytes(to_bytes(gf.ones(1, dtype="uint64")), "file", "single")


# ---------------------------------------------------------------------- states of modules, optimizers, generators


OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "SGD": lambda p: optim.SGD(p, 0.1),
    "momentum": lambda p: optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: optim.Adam(p, 0.01),
    "AdamW": lambda p: optim.AdamW(p, 0.01, betas=(0.8, 0.9)),
    "RMSprop": lambda p: optim.RMSprop(p, 0.01, momentum=0.5, centered=True),
    "schedule": lambda p: optim.Adam(p, lambda step: 0.1 / (1 + step)),
}  # fmt: skip


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_goes_on_with_the_same_bits(device: str, make: Callable[[Any], optim.Optimizer]) -> None:
    generator = gf.Generator(2**100 + 1)

    def start() -> tuple[nn.Module, optim.Optimizer]:
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5, generator=generator), nn.Linear(8, 2))
        groups = [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters()), "weight_decay": 0.1}]
        return model, make(groups)

    def steps(model: nn.Module, optimizer: optim.Optimizer, n: int) -> None:
        for _ in range(n):
            x = gf.random.normal((3, 4), generator=generator)
            optimizer.zero_grad()
            (model(x) ** 2).sum().backward()
            optimizer.step()

    def state(model: nn.Module, optimizer: optim.Optimizer) -> dict[str, Any]:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "generator": generator.state_dict()}

    first = start()
    steps(*first, 3)
    saved = to_bytes(state(*first))
    steps(*first, 3)
    expected = to_bytes(state(*first))
    second = start()
    steps(*second, 1)
    loaded = from_bytes(saved, "file")
    second[0].load_state_dict(loaded["model"])
    second[1].load_state_dict(loaded["optimizer"])
    generator.load_state_dict(loaded["generator"])
    assert equal(state(*second), loaded)
    assert to_bytes(state(*second)) == saved
    steps(*second, 3)
    assert to_bytes(state(*second)) == expected


def test_the_state_before_the_first_step(device: str) -> None:
    for make in OPTIMIZERS.values():
        state = make(nn.Linear(2, 2).parameters()).state_dict()
        assert equal(through_bytes(state), state)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_state_of_a_diverged_run_loads(device: str, tmp_path: Path) -> None:
    """To look at it; an optimizer refuses to go on with it."""
    model = nn.Linear(2, 2)
    optimizer = optim.Adam(model.parameters(), 0.1)
    for factor in (1.0, math.inf):
        optimizer.zero_grad()
        (model(gf.ones((1, 2))) * factor).sum().backward()
        optimizer.step()
    tree = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "loss": math.nan}
    assert not all(gf.isfinite(x).all().item() for x in tree["model"].values())
    gf.save(tmp_path / "state", tree)
    loaded = gf.load(tmp_path / "state")
    assert equal(loaded, tree)
    nn.Linear(2, 2).load_state_dict(loaded["model"])
    with pytest.raises(ValueError, match="non-finite"):
        optimizer.load_state_dict(loaded["optimizer"])


# ---------------------------------------------------------------------- what cannot be saved


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"optimizer": {"lr": lambda step: 0.1}},
            r"tree\['optimizer'\]\['lr'\] has the type function, .*: leave it out",
        ),
        (
            {"lr": [optim.schedules.step(0.1, 2)]},
            r"tree\['lr'\]\[0\] has the type \w+, which is not saved: leave it out",
        ),
        (np.ones(3), r"tree has the type ndarray, .* gradflow.tensor\(...\)"),
        ([1, (np.float32(1.0),)], r"tree\[1\]\[0\] has the type float32, .* \.item\(\)"),
        ({"model": nn.Linear(1, 1)}, r"tree\['model'\] has the type Linear, .*: pass its state_dict\(\)"),
        (
            {1: optim.SGD([gf.ones(1, requires_grad=True)], 1)},
            r"tree\[1\] has the type SGD, .*: pass its state_dict\(\)",
        ),
        ([gf.Generator()], r"tree\[0\] has the type Generator, .*: pass its state_dict\(\)"),
        ({"x": {1}}, r"tree\['x'\] has the type set, .*: save numbers, strings"),
        ({"x": b"x"}, r"tree\['x'\] has the type bytes, .*: save numbers, strings"),
        ([Odd()], r"tree\[0\] has the type Odd, .*: save numbers, strings"),
        ({"x": {1.5: 1}}, r"the keys of a dict .* strings or integers; tree\['x'\] has 1\.5"),
        ({True: 1}, r"the keys of a dict .* strings or integers; tree has True"),
        ({None: 1}, r"the keys of a dict .* strings or integers; tree has None"),
        ({"x": 1 << 1024}, r"tree\['x'\] is an integer of more than 1024 bits: save it as a string"),
    ],
)
def test_what_cannot_be_saved_is_named_and_nothing_is_written(tree: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"old")
    with pytest.raises((TypeError, ValueError), match=f"^{message}") as raised:
        gf.save(path, tree)
    assert "\n" not in str(raised.value)
    assert path.read_bytes() == b"old"


def test_a_tree_is_at_most_100_levels_deep() -> None:
    tree: Any = 0
    for _ in range(100):
        tree = [tree]
    assert equal(through_bytes(tree), tree)
    with pytest.raises(ValueError, match=r"up to 100 levels deep; this one goes on at tree\[0\]\[0\]\[0\]"):
        to_bytes([tree])
    cycle: dict[str, Any] = {}
    cycle["x"] = cycle
    with pytest.raises(ValueError, match=r"up to 100 levels deep; this one goes on at tree\['x'\]\['x'\]"):
        to_bytes(cycle)


@pytest.mark.slow
def test_a_tree_that_a_header_cannot_hold_is_refused() -> None:
    assert through_bytes(["x" * 1_000_000]) == ["x" * 1_000_000]
    for tree in ("x" * 50_000_000, '"' * 17_000_000):
        with pytest.raises(ValueError, match="at most 50000000 characters: save long lists of numbers as tensors"):
            to_bytes(tree)


def test_errors_of_the_disk_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(repr(str(tmp_path / "no" / "state")))):
        gf.save(tmp_path / "no" / "state", {})
    with pytest.raises(FileNotFoundError, match=re.escape(repr(str(tmp_path / "state")))):
        gf.load(tmp_path / "state")


def test_without_safetensors_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gf.save(tmp_path / "state", {})
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ModuleNotFoundError, match=r'gradflow.save needs safetensors from the extra "train" .*; type'):
        gf.save(tmp_path / "other", {})
    with pytest.raises(ModuleNotFoundError, match=r'gradflow.load needs safetensors from the extra "train" .*; type'):
        gf.load(tmp_path / "state")


# ---------------------------------------------------------------------- files of other programs


def test_a_file_of_another_program_loads_as_its_tensors(device: str, tmp_path: Path) -> None:
    arrays = {"b": np.arange(3, dtype=np.int8), "a.x": np.float32([[1.5, math.nan]])}
    for metadata in (None, {}, {"format": "pt", "note": "made with gradflow"}):
        (tmp_path / "model.safetensors").write_bytes(numpy_save(arrays, metadata))
        loaded = gf.load(tmp_path / "model.safetensors")
        assert set(loaded) == {"b", "a.x"}
        assert equal(loaded, {name: gf.tensor(arrays[name]) for name in loaded})


@pytest.mark.slow
def test_pytorch_reads_and_writes_these_files(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch, of the extra peers, is not installed")
    from safetensors.torch import load_file, save_file

    path = tmp_path / "model.safetensors"
    model, other = (
        nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)),
        torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1)),
    )
    gf.save(path, model.state_dict())
    other.load_state_dict(load_file(path))
    x = np.float32([[1, 2, 3], [-1, 0, 1]])
    assert np.allclose(other(torch.tensor(x)).detach().numpy(), model(gf.tensor(x)).detach().numpy(), rtol=1e-5)
    with torch.no_grad():
        other[0].weight += 1
    save_file(other.state_dict(), path, {"format": "pt"})
    model.load_state_dict(gf.load(path))
    assert model[0].weight.tolist() == other[0].weight.tolist()
    half = other.to(torch.bfloat16).state_dict()
    save_file(half, path)
    loaded = gf.load(path)
    assert {name: (x.dtype, x.tolist()) for name, x in loaded.items()} == {
        name: (gf.bfloat16, x.tolist()) for name, x in half.items()
    }


def safetensors_file(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_bools_of_other_bytes_are_true() -> None:
    content = safetensors_file({"x": entry("BOOL", [3], 0, 3)}, b"\0\1\2")
    assert from_bytes(content, "file")["x"].astype("int32").tolist() == [0, 1, 1]


def described(tree: Any, version: Any = 1, **tensors: Any) -> bytes:
    """A file with this description of its tree and a checksum that fits."""
    arrays = {name: np.array(value, np.float32) for name, value in tensors.items()}
    parts = [(name, "float32", a.shape, a.reshape(-1).view("uint8")) for name, a in arrays.items()]
    text = json.dumps(tree, separators=(",", ":"))
    return numpy_save(
        arrays, {"gradflow": json.dumps({"gradflow": version, "tree": tree, "checksum": saving._checksum(text, parts)})}
    )


ONE = to_bytes({"x": gf.ones(2)})
TWO = to_bytes({"x": gf.ones((2, 3)), "y": gf.zeros((2, 3))})
DEEP = '{"dict":[["x",' * 100_000
WHOLE = "is not a whole safetensors file"
FOREIGN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", WHOLE),
    "short": (b"\1\2\3", WHOLE),
    "text": (b"epoch,train_loss\n1,0.5\n2,0.25\n", WHOLE),
    "zeros": (bytes(1000), WHOLE),
    "truncated in the data": (ONE[:-1], WHOLE),
    "truncated in the header": (ONE[:100], WHOLE),
    "longer": (ONE + b"\0", WHOLE),
    "twice": (ONE + ONE, WHOLE),
    "length beyond 64 bits": (b"\xff" * 8 + ONE[8:], WHOLE),
    "header is a list": (safetensors_file([]), WHOLE),
    "header is deep": (safetensors_file(b"{" + b'"a":{' * 100_000 + b"}" * 100_001), WHOLE),
    "header is not UTF-8": (safetensors_file(b'{"\xff":{}}'), WHOLE),
    "size overflows": (safetensors_file({"x": entry("F64", [2**62, 2**62], 0, 8)}, bytes(8)), WHOLE),
    "size wraps to 0": (safetensors_file({"x": entry("F64", [2**61], 0, 0)}), WHOLE),
    "terabytes": (safetensors_file({"x": entry("U8", [2**42], 0, 2**42)}), WHOLE),
    "offsets reversed": (safetensors_file({"x": entry("U8", [4], 4, 0)}, bytes(4)), WHOLE),
    "overlapping": (safetensors_file({"x": entry("U8", [4], 0, 4), "y": entry("U8", [4], 2, 6)}, bytes(6)), WHOLE),
    "a hole": (safetensors_file({"x": entry("U8", [2], 0, 2), "y": entry("U8", [2], 4, 6)}, bytes(6)), WHOLE),
    "negative": (safetensors_file({"x": entry("U8", [-1], 0, 0)}), WHOLE),
    "dtype": (safetensors_file({"x": entry("F8_E4M3", [1], 0, 1)}, b"\0"), "has a tensor 'x' of F8_E4M3, a dtype that"),
    "axes": (safetensors_file({"x": entry("U8", [1] * 99, 0, 1)}, b"x"), "has a tensor whose shape NumPy cannot hold"),
    "long axis": (safetensors_file({"x": entry("U8", [0, 2**63], 0, 0)}), "has a tensor whose shape NumPy cannot hold"),
    "another dtype": (ONE.replace(b'"F32"', b'"I32"'), "is damaged: its checksum"),
    "another shape": (TWO.replace(b"[2,3]", b"[3,2]"), "is damaged: its checksum"),
    "names exchanged": (re.sub(rb'"([xy])":{', lambda m: b'"%c":{' % (m[1][0] ^ 1), TWO), "is damaged: its checksum"),
    "key is gone": (ONE.replace(b'"gradflow":"', b'"gradfl0w":"'), "is damaged: its description"),
    "no JSON": (numpy_save({}, {"gradflow": "x"}), "is damaged: its description"),
    "deep JSON": (numpy_save({}, {"gradflow": DEEP}), "is damaged: its description"),
    "JSON without tree": (numpy_save({}, {"gradflow": '{"gradflow":1,"checksum":""}'}), "is damaged: its description"),
    "infinity": (numpy_save({}, {"gradflow": '{"gradflow":1,"checksum":"","tree":1e999}'}), "is damaged: its descr"),
    "long number": (numpy_save({}, {"gradflow": '{"gradflow":1,"checksum":"","tree":%s}' % ("9" * 9999)}), "is dam"),
    "checksum": (numpy_save({}, {"gradflow": '{"gradflow":1,"checksum":"","tree":0}'}), "is damaged: its checksum"),
    "version 0": (described(0, 0), "is damaged: its checksum"),
    "newer": (described({"new": 0}, 2), "was written by a newer gradflow: its format is 2, this .* reads 1; upgrade"),
    "missing tensor": (described([{"tensor": "x"}]), "has a tree with a part that gradflow does not write: {\"tensor"),
    "unused tensor": (described([{"tensor": "x"}], x=0, y=1), "has a tensor that its tree does not use: 'y'"),
    "too deep": (described(json.loads("[" * 150 + "]" * 150)), "has a tree that is more than 100 levels deep"),
    **{
        f"tree {tree}": (described(tree), "has a tree with a part that gradflow does not write: ")
        for tree in (
            {}, {"x": 1}, {"tuple": 1}, {"float": "1"}, {"float": 1}, {"tensor": 1}, {"tensor": []}, {"dict": {}},
            {"dict": [1]}, {"dict": [[1]]}, {"dict": [["a", 1, 2]]}, {"dict": [[[], 1]]}, {"dict": [[None, 1]]},
            {"dict": [[1.0, 1]]}, {"dict": [[True, 1]]}, {"dict": [["a", 1], ["a", 2]]}, [[{"dict": [["a", {}]]}]],
        )
    },
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), FOREIGN.values(), ids=FOREIGN)
def test_other_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "some\nfile"
    path.write_bytes(content)
    for load in (gf.load, lambda path: from_bytes(content, str(path))):
        with pytest.raises(gf.InvalidFileError, match=f"some file {message}") as raised:
            load(path)
        assert str(raised.value).isprintable()
        assert len(str(raised.value)) < 300 + len(str(path))


def test_a_header_of_100_mb_is_refused() -> None:
    with pytest.raises(gf.InvalidFileError, match=f"file {WHOLE}"):
        from_bytes(safetensors_file(b'{"' + b"x" * 100_000_000 + b'":{}}'), "file")


def test_a_tensor_may_be_used_twice_in_a_description() -> None:
    a, b = from_bytes(described([{"tensor": "x"}, {"tensor": "x"}], x=1), "file")
    assert a is b


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (3,)


@pytest.mark.parametrize("kind", ["pickle", "zip"])
def test_pickles_and_archives_are_named_and_not_opened(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Payload()))
    else:
        buffer = io.BytesIO()
        np.savez(buffer, x=np.array([Payload()]))
        path.write_bytes(buffer.getvalue())
    expected = {
        "pickle": "perhaps a pickle, which gradflow does not load",
        "zip": "a zip archive, as numpy.savez and torch",
    }
    with pytest.raises(gf.InvalidFileError, match=f"file {WHOLE}, but {expected[kind]}"):
        gf.load(path)


@posix
def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, "/dev/zero"):
        with pytest.raises(gf.InvalidFileError, match=f"^{path} is not a regular file$"):
            gf.load(path)


@posix
@pytest.mark.parametrize("start", [b"", (1 << 50).to_bytes(8, "little") + b"{"])
def test_the_rest_of_a_long_file_of_another_kind_is_not_read(start: bytes, tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file:
        file.write(start)
        file.truncate(1 << 42)  # 4 TB, without blocks on the disk
    with pytest.raises(gf.InvalidFileError, match=WHOLE):
        gf.load(tmp_path / "file")


# ---------------------------------------------------------------------- mutations


def sample() -> Any:
    gf.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = optim.Adam(model.parameters(), 0.01)
    model(gf.ones((2, 3))).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "generator": gf.Generator(3).state_dict(),
        "values": [1, 0.1, -0.0, math.nan, 2**200, True, None, "ä\ud800"],
        "others": (gf.arange(3, dtype="int64"), gf.tensor(True), gf.tensor([1.5], dtype="float16"), gf.zeros((0, 2))),
    }  # fmt: skip


def test_a_mutated_file_is_refused_or_has_the_same_values(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """300 of them; --random-examples=N tries N. Each kind is refused, and some do not change the values."""
    tree, path = sample(), tmp_path / "file"
    outcomes: collections.Counter[str] = collections.Counter()
    for i, (what, content) in enumerate(mutants(to_bytes(tree), request.config.getoption("--random-examples") or 300)):
        path.write_bytes(content)
        try:
            same, message = equal(gf.load(path), tree), ""
        except gf.InvalidFileError as error:
            same, message = None, str(error)
        assert same is not False, (i, what)
        assert message.replace("\n    ", "").isprintable(), (i, what)  # but for the lines that convert a pickle
        outcomes["same" if same else what] += 1
    print(outcomes)
    assert outcomes["same"] > 0
    assert len(outcomes) == 12


def test_a_mutated_file_with_a_checksum_that_fits_is_refused_or_is_a_tree(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is made on purpose."""
    content = to_bytes(sample())
    checksum = re.search(rb'checksum\\":\\"(\w+)', content)
    assert checksum is not None
    monkeypatch.setattr(saving, "_checksum", lambda *_: checksum[1].decode())
    trees = 0
    for _, mutant in mutants(content, request.config.getoption("--random-examples") or 300, seed=1):
        try:
            to_bytes(from_bytes(mutant, "file"))
        except gf.InvalidFileError:
            continue
        trees += 1
    assert trees > 10


# ---------------------------------------------------------------------- pickles


def test_pickled_tensors_open_on_the_cpu_where_their_device_is_missing(
    halves: str, removing_devices: Callable[[str, type], None]
) -> None:
    x = gf.tensor([1.0, 2.0], device=halves, requires_grad=True)
    half = gf.tensor([1.5, -0.0], dtype="bfloat16", device=halves)
    content = pickle.dumps([x, half])
    model = pickle.dumps(nn.Linear(2, 1).to(halves))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(t.device == halves for t in pickle.loads(content))
    for device in [d for d in registry._backends if d.type == halves]:
        del registry._backends[device]
    del discovery._registered[halves]
    with pytest.warns(UserWarning, match="a pickled tensor opens on the cpu: .*halves"):
        x, half = pickle.loads(content)
    assert (x.device, x.requires_grad, x.tolist()) == ("cpu", True, [1.0, 2.0])
    assert (half.device, half.dtype, repr(half.tolist())) == ("cpu", gf.bfloat16, "[1.5, -0.0]")
    with pytest.warns(UserWarning, match="a pickled tensor opens on the cpu: .*halves"):
        loaded = pickle.loads(model)
    assert loaded(gf.ones((1, 2))).device == "cpu"


def test_pickled_tensors_of_a_gpu_open_where_there_is_none() -> None:
    function, (cls, values, _, requires_grad) = gf.ones(2).__reduce__()[:2]
    if gf.diagnose("cuda").usable:
        device = "cuda:99"
    else:
        device = "cuda:0"
    with pytest.warns(UserWarning, match=f"a pickled tensor opens on the cpu: device '{device}'"):
        assert function(cls, values, device, requires_grad).device == "cpu"


def test_arguments_in_the_order_of_pytorch(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="save takes a path and then a tree; got dict as the path"):
        gf.save({"epoch": 1}, tmp_path / "state.safetensors")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
