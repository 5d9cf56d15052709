"""States of tensors on an emulated CuPy are saved, and load there and on the CPU."""

from __future__ import annotations

from typing import Any

import pytest

import gradflow as gf
from gradflow.saving import from_bytes, to_bytes

pytest.importorskip("safetensors", reason="safetensors, of the extra train, is not installed")


@pytest.mark.usefixtures("backend")
def test_a_state_on_cupy() -> None:
    with gf.use_device("emulated"):
        half, numbers = gf.tensor([1.5, -0.0], dtype="bfloat16"), gf.tensor([[1.0, 2.0], [3.0, 4.0]]).T
        content = to_bytes({0: half, "x": (numbers, gf.ones((0, 2), dtype="int64"))})
        loaded: Any = from_bytes(content, "file")
        assert {t.device for t in (loaded[0], *loaded["x"])} == {half.device}
        assert to_bytes(loaded) == content
    there = from_bytes(content, "file", "cpu")
    dtype = "bfloat16" if gf.get_backend("cpu").supports("bfloat16") else "float32"
    assert (there[0].dtype.name, repr(there[0].tolist())) == (dtype, "[1.5, -0.0]")
    assert (there["x"][0].device, there["x"][0].tolist()) == ("cpu", [[1.0, 3.0], [2.0, 4.0]])
