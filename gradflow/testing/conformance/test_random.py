"""Random numbers, equal bit for bit on every device: the stream of `numpy.random.Philox` and what is drawn from it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn
from gradflow.backend import Backend, dropout_threshold
from gradflow.testing.conformance import REALS, about
from gradflow.testing.conformance.harness import both, reference_device
from gradflow.testing.conformance.kernel_cases.inputs import name_of
from gradflow.testing.tolerances import assert_agree

M64, M128, M256 = (1 << 64) - 1, (1 << 128) - 1, (1 << 256) - 1
KEYS = [0, 1, 2**63 + 12345, M64, 1 << 64, M128]
COUNTERS = [0, 1, 5, M64 - 1, M64, 1 << 64, M128 - 3, M128 - 1, M128, (1 << 192) - 2, M256 - 1, M256]
"""Counters around the carry of one 64-bit word into the next, up to the wrap of all 256 bits."""


def _philox(key: int, counter: int, n: int) -> Any:
    return np.random.Philox(key=key, counter=counter).random_raw(n)


@about("random_bits")
@pytest.mark.parametrize("counter", COUNTERS, ids=hex)
@pytest.mark.parametrize("key", KEYS, ids=hex)
def test_random_bits(backend: Backend, key: int, counter: int) -> None:
    """Native and composed, for numbers of words around the 4 of a block."""
    for n in (0, 1, 3, 4, 5, 23, 1027):
        for _, chosen in both(backend):
            bits = chosen.random_bits(key, counter, n)
            assert_agree(f"{n} words", chosen.to_host(bits), _philox(key, counter, n))
            if n in (5, 23):
                bits = chosen.random_bits(None, _words(chosen, key, counter), n)
                assert_agree(f"{n} words, from those of the device", chosen.to_host(bits), _philox(key, counter, n))


def _words(backend: Backend, key: int, counter: int) -> Any:
    """The key and the counter on the device, as a kernel takes them from there."""
    first = counter + 1
    words = [first >> shift & M64 for shift in (0, 64, 128, 192)] + [key & M64, key >> 64]
    return backend.from_host(np.array(words, np.uint64))


@about("random_bits")
def test_a_known_answer(backend: Backend) -> None:
    """From Random123's kat_vectors: philox4x64-10 with key and counter 0. NumPy starts at counter + 1, hence M256."""
    expected = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert [int(w) for w in backend.to_host(backend.random_bits(0, M256, 4))] == expected


@about("dropout")
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1e-12])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 0), (4, 3, 3), (2049,)], ids=name_of)
def test_dropout_masks(backend: Backend, shape: tuple[int, ...], p: float) -> None:
    """Masks use the 32-bit halves of the words, the low half first, in C order."""
    n = math.prod(shape)
    words = _philox(11, M64, (n + 1) // 2)
    halves = np.stack([words & np.uint64(0xFFFFFFFF), words >> np.uint64(32)], axis=-1).reshape(-1)[:n]
    mask = (halves >= dropout_threshold(p)).reshape(shape)
    ones = np.ones(shape)
    for _, chosen in both(backend):
        out, residual = chosen.dropout(chosen.from_host(ones), p, 11, M64)
        found = chosen.to_host(out)
        assert_agree("the mask", found != 0, mask)
        assert_agree("the factor", found, mask / (1 - p), ulp=1)
        back = chosen.dropout_backward(chosen.from_host(ones), residual, p)
        assert_agree("its backward", chosen.to_host(back), found)
        again, _ = chosen.dropout(chosen.from_host(ones), p, None, _words(chosen, 11, M64))
        assert_agree("from words of the device", chosen.to_host(again), found)


@about("random_bits")
@pytest.mark.parametrize("dtype", REALS)
def test_uniform_numbers(device: str, dtype: str) -> None:
    """The upper 52 bits of the words plus a half, rounded once at the end."""
    whole = (_philox(0, 0, 1001) >> np.uint64(12)).astype("float64")
    expected = ((whole + 0.5) * 2.0**-52 * 3.0 + 2.0).astype(dtype)
    assert_agree("uniform", gf.random.uniform((1001,), low=2.0, high=5.0, dtype=dtype), expected)
    gf.manual_seed(0)
    found = gf.random.uniform((7, 11, 13), low=2.0, high=5.0, dtype=dtype, device=device).numpy()
    assert_agree("on this device", found, expected.reshape(7, 11, 13))


@about("random_bits")
@pytest.mark.parametrize("dtype", REALS)
def test_normal_numbers(device: str, dtype: str) -> None:
    """They equal the NumPy backend's bit for bit, and are within 1e-9 of the quantiles of the uniform numbers."""
    found = gf.random.normal((1001,), mean=1.0, std=0.5, dtype=dtype)
    with reference_device() as name:
        gf.manual_seed(0)
        expected = gf.random.normal((1001,), mean=1.0, std=0.5, dtype=dtype, device=name).numpy()
    assert_agree("normal", found, expected)
    if dtype == "float64":
        u = ((_philox(0, 0, 1001) >> np.uint64(12)).astype("float64") + 0.5) * 2.0**-52
        quantiles = [statistics.NormalDist(1.0, 0.5).inv_cdf(p) for p in u.tolist()]
        assert_agree("normal", found, np.array(quantiles), bound=1e-9)


@about("random_bits", "argsort")
@pytest.mark.parametrize("n", [0, 1, 2, 7, 1000])
def test_permutations(device: str, n: int) -> None:
    """A permutation is the stable argsort of the words."""
    assert_agree("permutation", gf.random.permutation(n, device=device), np.argsort(_philox(0, 0, n), kind="stable"))


@about("random_bits")
def test_a_stream_goes_on(device: str) -> None:
    """Numbers are the same whether drawn in parts or at once."""
    generator = gf.Generator(7)
    parts = [gf.random.uniform((n,), dtype="float64", generator=generator).numpy() for n in (4, 8, 4)]
    whole = gf.random.uniform((16,), dtype="float64", generator=gf.Generator(7)).numpy()
    assert_agree("parts", np.concatenate(parts), whole)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(7, 5),
    "mlp": lambda: nn.MLP([7, 16, 12, 3], activation="gelu", dropout=0.1),
    "layer norm": lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm((6,))),
}


@about("random_bits")
@pytest.mark.parametrize("title", MODULES)
def test_initial_weights(device: str, title: str) -> None:
    """The weights of a model equal those on the NumPy backend bit for bit."""
    found = [p.detach().numpy() for p in MODULES[title]().parameters()]
    with reference_device() as name, gf.use_device(name):
        gf.manual_seed(0)
        expected = [p.detach().numpy() for p in MODULES[title]().parameters()]
    for x, y in zip(found, expected, strict=True):
        assert_agree(title, x, y)


INITIALIZERS: dict[str, Callable[[gf.Tensor], gf.Tensor]] = {
    "uniform_": nn.init.uniform_, "normal_": nn.init.normal_, "xavier_uniform_": nn.init.xavier_uniform_,
    "xavier_normal_": nn.init.xavier_normal_, "kaiming_uniform_": nn.init.kaiming_uniform_,
    "kaiming_normal_": nn.init.kaiming_normal_,
}  # fmt: skip


@about("random_bits")
@pytest.mark.parametrize("title", INITIALIZERS)
def test_initializers(device: str, title: str) -> None:
    """They equal those on the NumPy backend bit for bit."""
    found = INITIALIZERS[title](gf.zeros((7, 5))).numpy()
    with reference_device() as name:
        gf.manual_seed(0)
        expected = INITIALIZERS[title](gf.zeros((7, 5), device=name)).numpy()
    assert_agree(title, found, expected)
