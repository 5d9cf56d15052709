"""`gradflow.save` and `gradflow.load`: trees of tensors and plain values in one file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import gradflow as gf

pytest.importorskip("safetensors", reason="safetensors, of the extra train, is not installed")


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


def test_a_tree_comes_back(device: str, tmp_path: Path) -> None:
    tree = {
        "weights": {0: gf.ones((2, 3)), 1: gf.tensor(-0.0)},
        "numbers": [1, -(2**200), True, 0.1, -0.0, math.nan, math.inf, -math.inf, None, "ä\n\ud800"],
        "pairs": ((), (1, [gf.zeros((0, 4), dtype="int64")]), [], {}),
    }
    gf.save(tmp_path / "state.safetensors", tree)
    loaded = gf.load(tmp_path / "state.safetensors")
    assert equal(loaded, tree)
    assert loaded["weights"][0].device == device
