"""Random numbers: the stream of numpy.random.Philox bit for bit, and the distributions computed from it."""

from __future__ import annotations

import copy
import math
import multiprocessing
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from cases import dropout_mask
from hypothesis import given, settings
from hypothesis import strategies as st

import gradflow as gf
from gradflow.backend import ARRAY_FUNCTIONS, Backend, MemoryStats, discovery, registry
from gradflow.random.quantile import normal_quantile
from gradflow.random.sampling import unit_interval

CPU = gf.get_backend("cpu")
M64, M128, M256 = (1 << 64) - 1, (1 << 128) - 1, (1 << 256) - 1
KEYS = [0, 1, 2**63 + 12345, M64, 1 << 64, M128]
COUNTERS = [0, 1, 5, M64 - 1, M64, 1 << 64, M128 - 1, M128, (1 << 192) - 2, M256 - 1, M256]


def philox(key: int, counter: int, n: int) -> np.ndarray:
    return np.random.Philox(key=key, counter=counter).random_raw(n)


# ---------------------------------------------------------------------- bits


@pytest.mark.parametrize("counter", COUNTERS, ids=hex)
@pytest.mark.parametrize("key", KEYS, ids=hex)
def test_bits_are_those_of_numpy_native_and_composed(key: int, counter: int, device: str) -> None:
    """The counters are next to carries between 64-bit words, up to the overflow of all 256 bits."""
    backend = gf.get_backend(device)
    for n in (0, 1, 3, 4, 5, 23):
        expected = philox(key, counter, n)
        for bits in (backend.random_bits(key, counter, n), Backend.random_bits(backend, key, counter, n)):
            found = backend.to_host(bits)
            assert found.dtype == np.uint64
            assert found.shape == (n,)
            assert np.array_equal(found, expected), f"key {key:#x}, counter {counter:#x}, n {n}"


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(key=st.integers(0, M128), counter=st.integers(0, M256), n=st.integers(0, 40))
def test_bits_of_any_key_and_counter(key: int, counter: int, n: int) -> None:
    assert np.array_equal(Backend.random_bits(CPU, key, counter, n), philox(key, counter, n))
    assert np.array_equal(CPU.random_bits(key, counter, n), philox(key, counter, n))


def test_a_known_answer() -> None:
    """From Random123's kat_vectors: philox4x64-10 with key and counter 0. NumPy starts at counter + 1, hence M256."""
    expected = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert [int(w) for w in CPU.random_bits(0, M256, 4)] == expected
    assert [int(w) for w in Backend.random_bits(CPU, 0, M256, 4)] == expected


# ---------------------------------------------------------------------- the generator


def test_a_stream_continues_where_it_stopped() -> None:
    g = gf.Generator(7)
    parts = [gf.random.uniform((n,), dtype="float64", generator=g).tolist() for n in (4, 8, 4)]
    whole = gf.random.uniform((16,), dtype="float64", generator=gf.Generator(7)).tolist()
    assert [*parts[0], *parts[1], *parts[2]] == whole
    assert repr(g) == "Generator(key=7, counter=4)"


def test_reserved_words_are_never_drawn_twice() -> None:
    g = gf.Generator(0)
    seen: list[int] = []
    for n in (1, 2, 3, 4, 5, 9):
        key, counter = g.draw(n)
        seen += [int(w) for w in CPU.random_bits(key, counter, n)]
    assert len(set(seen)) == len(seen) == 24


def test_a_saved_state_continues_the_stream_and_a_seed_restarts_it() -> None:
    import json

    g = gf.Generator(M128)
    g.counter = M256 - 1
    state = json.loads(json.dumps(g.state_dict()))
    expected = gf.random.normal((9,), generator=g).tolist()
    other = gf.Generator(1)
    other.load_state_dict(state)
    assert gf.random.normal((9,), generator=other).tolist() == expected
    assert 0 <= g.counter < 1 << 256, "the counter wraps"
    gf.manual_seed(3)
    first = gf.random.uniform(5).tolist()
    assert gf.random.uniform(5).tolist() != first
    gf.manual_seed(3)
    assert gf.random.uniform(5).tolist() == first


@pytest.mark.parametrize("seed", [-1, 1 << 128, 1.0, "1", None, True], ids=repr)
def test_an_invalid_seed_is_refused(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"integer in \[0, 2\^128\)"):
        gf.manual_seed(seed)
    assert gf.Generator(M128).key == M128


def test_numpy_integers_are_seeds_and_shapes() -> None:
    first = gf.manual_seed(np.uint64(2)).state_dict()
    assert first == gf.Generator(2).state_dict()
    assert gf.random.normal(np.int64(3)).shape == gf.random.normal((np.int64(3),)).shape == (3,)
    assert gf.random.permutation(np.int64(3)).shape == (3,)
    for call in (gf.random.uniform, gf.random.normal, gf.random.permutation):
        for wrong in (-1, 1.5, "3"):
            with pytest.raises(ValueError, match="a shape is made of integers >= 0"):
                call(wrong)
    with pytest.raises(ValueError, match="a shape is made of integers >= 0"):
        gf.random.permutation((2, 3))  # type: ignore[arg-type]


# ---------------------------------------------------------------------- distributions


@pytest.mark.parametrize("draw", [gf.random.normal, gf.random.uniform, gf.random.permutation])
def test_arguments_after_the_shape_are_keyword_only(draw: Any) -> None:
    """`normal(3, 4)` would not be a matrix but three numbers of mean 4."""
    with pytest.raises(TypeError, match="positional"):
        draw(3, 4)


@pytest.mark.parametrize(
    "options", [{"std": -1.0}, {"std": math.nan}, {"std": math.inf}, {"mean": math.nan}, {"mean": math.inf}], ids=str
)
def test_an_invalid_mean_or_standard_deviation_is_refused(options: dict[str, float]) -> None:
    before = gf.random.default_generator.state_dict()
    with pytest.raises(ValueError, match=r"finite std >= 0; got mean="):
        gf.random.normal((3,), **options)
    assert gf.random.default_generator.state_dict() == before
    assert gf.random.normal((3,), mean=2.0, std=0.0).tolist() == [2.0] * 3


@pytest.mark.parametrize(
    "options", [{"low": 2.0}, {"low": math.nan}, {"high": math.inf}, {"low": -math.inf}, {"high": -0.5}], ids=str
)
def test_uniform_numbers_need_bounds_in_order(options: dict[str, float]) -> None:
    before = gf.random.default_generator.state_dict()
    with pytest.raises(ValueError, match=r"finite low <= high; got low="):
        gf.random.uniform((3,), **options)
    assert gf.random.default_generator.state_dict() == before
    assert gf.random.uniform((3,), low=2.0, high=2.0).tolist() == [2.0] * 3


def fractions(*words: int) -> np.ndarray:
    return np.asarray(unit_interval(np.array(words, np.uint64), CPU))


def test_fractions_are_the_upper_52_bits_and_a_half() -> None:
    p = fractions(0, 0xFFF, 1 << 12, M64, 1 << 63)
    assert p.tolist() == [2.0**-53, 2.0**-53, 1.5 * 2.0**-52, 1 - 2.0**-53, 0.5 + 2.0**-53]
    assert ((p > 0) & (p < 1)).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_uniform_numbers_stay_within_their_bounds(dtype: str, device: str) -> None:
    if not gf.get_backend(device).supports(dtype):
        pytest.skip(f"{device} has no {dtype}")
    x = gf.random.uniform((100, 100), low=-1.0, high=3.0, dtype=dtype)
    values = x.numpy().astype("float64")
    assert x.dtype == dtype
    assert values.min() >= -1.0
    assert values.max() <= 3.0
    # 10^4 numbers: five standard errors of the mean (4 / sqrt(12) / 100) and of the spread
    assert abs(values.mean() - 1.0) < 5 * 4 / math.sqrt(12) / 100
    assert abs(values.std() - 4 / math.sqrt(12)) < 0.05


def test_uniform_numbers_are_those_of_the_words() -> None:
    gf.manual_seed(5)
    x = gf.random.uniform((2, 3), low=2.0, high=5.0, dtype="float64").numpy()
    whole = (philox(5, 0, 6) >> np.uint64(12)).astype("float64")
    assert np.array_equal(x, ((whole + 0.5) * 2.0**-52 * 3.0 + 2.0).reshape(2, 3))


def test_normal_quantiles_are_exact_to_a_few_ulp() -> None:
    """Against the inverse of math.erfc by Newton's method, in the tails, at the seams, and between.

    Wichura gives about 1e-16 for his approximation; some thirty roundings in float64 make it less than 3e-15.
    """
    k = [0, 1, 2, 10, 1000, 10**6, 10**9, 10**12, 10**14, 2**49, 2**50, 2**51 - 1, 2**51, 2**51 + 3, 2**52 - 1]
    k += [int(0.075 * 2**52), int(0.075 * 2**52) + 1, int(0.925 * 2**52), int(0.4 * 2**52), int(1.3887e-11 * 2**52)]
    k += [int(u * 2**52) for u in np.linspace(0.001, 0.999, 200)]
    p = (np.array(k, "float64") + 0.5) * 2.0**-52
    z = np.asarray(normal_quantile(p, CPU))
    for pi, zi in zip(p.tolist(), z.tolist(), strict=True):
        tail = min(pi, 1 - pi)  # exact: p is a multiple of 2^-53
        x = -abs(zi)
        for _ in range(3):
            density = math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
            x -= (math.erfc(-x / math.sqrt(2)) / 2 - tail) / density
        assert abs(abs(zi) + x) <= 3e-15 * max(1.0, abs(x)), f"p = {pi!r}: {abs(zi)!r}, not {-x!r}"
        assert (zi < 0) == (pi < 0.5)


def test_normal_numbers_are_symmetric() -> None:
    p = (np.array([0, 5, 10**9, 2**50, 2**51 - 1], "float64") + 0.5) * 2.0**-52
    assert np.array_equal(normal_quantile(p, CPU), -np.asarray(normal_quantile(1 - p, CPU)))


def test_normal_numbers_have_the_moments_of_the_normal_distribution(device: str) -> None:
    z = gf.random.normal((200, 500), dtype="float64").numpy()
    n = z.size  # five standard errors of each moment: sqrt(1/n), sqrt(2/n), sqrt(15/n), sqrt(96/n)
    for power, expected, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        moment = float((z**power).mean())
        assert abs(moment - expected) < 5 * math.sqrt(spread / n), f"moment {power} is {moment}"
    gf.manual_seed(0)
    w = gf.random.normal((200, 500), mean=2.0, std=0.5, dtype="float64").numpy()
    assert np.array_equal(w, z * 0.5 + 2.0)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 1000])
def test_permutations_hold_each_number_once(n: int, device: str) -> None:
    order = gf.random.permutation(n)
    assert order.dtype == gf.int64
    assert sorted(order.tolist()) == list(range(n))
    gf.manual_seed(0)
    assert order.tolist() == np.argsort(philox(0, 0, n), kind="stable").tolist()


def test_all_permutations_are_equally_likely() -> None:
    """6 orders of 3, 600 draws: each 100 times give or take five standard deviations (sqrt(600 * 5 / 36) = 9.1)."""
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(600):
        order = tuple(gf.random.permutation(3).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert all(abs(c - 100) < 46 for c in counts.values()), counts


def test_random_numbers_are_floating() -> None:
    for function in (gf.random.uniform, gf.random.normal):
        with pytest.raises(TypeError, match="int64"):
            function((2,), dtype="int64")
        assert function(()).shape == ()
        assert function((0, 3)).shape == (0, 3)
        assert function(4).shape == (4,)
        assert function((2,)).dtype == gf.float32


# ---------------------------------------------------------------------- integers


def chi_square(counts: np.ndarray, p: np.ndarray) -> float:
    """Pearson's statistic in standard deviations above its mean, which is the degrees of freedom."""
    expected = counts.sum() * p
    degrees = len(p) - 1
    return float((((counts - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees))


def test_random_integers_are_the_words_modulo_their_number(device: str) -> None:
    words = philox(0, 0, 6).tolist()
    for low, high, dtype in [
        (-3, 4, "int64"), (0, 1, "uint8"), (-128, 128, "int8"), (-(2**63), 2**63, "int64"), (2**63, 2**64, "uint64"),
        (0, 2**64, "uint64"), (-5, 2**63 - 9, "int64"),
    ]:  # fmt: skip
        gf.manual_seed(0)
        found = gf.random.randint((2, 3), low=low, high=high, dtype=dtype)
        assert found.dtype == dtype
        assert found.numpy().reshape(-1).tolist() == [low + word % (high - low) for word in words]


def test_random_integers_are_equally_likely() -> None:
    counts = np.bincount(gf.random.randint(70_000, low=-3, high=4).numpy() + 3)
    assert abs(chi_square(counts, np.full(7, 1 / 7))) < 4


def test_bernoulli_numbers_have_their_probabilities(device: str) -> None:
    p = gf.tensor([[0.0, 0.25], [0.9, 1.0]], requires_grad=True)
    mean = np.mean([gf.random.bernoulli(p).numpy() for _ in range(400)], axis=0)
    assert mean[0, 0] == 0
    assert mean[1, 1] == 1
    assert np.all(np.abs(mean - [[0, 0.25], [0.9, 1]]) < 5 * 0.5 / 20)
    drawn = gf.random.bernoulli(p)
    assert (drawn.shape, drawn.dtype, drawn.device, drawn.requires_grad) == (p.shape, p.dtype, p.device, False)


@pytest.mark.parametrize("replacement", [True, False])
def test_categories_are_drawn_by_their_weights(replacement: bool) -> None:
    """Without replacement, the second of two has the probabilities of the remaining categories."""
    weights = np.array([1.0, 0.0, 2.0, 5.0])
    p = weights / weights.sum()
    rows = gf.tensor(np.tile(weights, (20_000, 1)), "float32")
    pairs = gf.random.multinomial(rows, 2, replacement=replacement).numpy()
    assert pairs.dtype == np.int64
    rest = 1.0 if replacement else 1 - p[:, None]
    both = p[:, None] * p / rest * (1 - (not replacement) * np.eye(4))
    counts = np.bincount(pairs[:, 0] * 4 + pairs[:, 1], minlength=16)
    possible = both.reshape(-1) > 0
    assert not counts[~possible].any()
    assert abs(chi_square(counts[possible], both.reshape(-1)[possible])) < 4


def test_categories_are_the_same_on_every_device(device: str) -> None:
    values = np.random.default_rng(0).random((5, 300)) * (np.arange(300) % 3 > 0)
    for replacement in (True, False):
        gf.manual_seed(1)
        found = gf.random.multinomial(gf.tensor(values), 150, replacement=replacement).numpy()
        with gf.use_device("cpu"):
            gf.manual_seed(1)
            expected = gf.random.multinomial(gf.tensor(values), 150, replacement=replacement).numpy()
        assert np.array_equal(found, expected)
        assert (np.take_along_axis(values, found, 1) > 0).all()
        assert replacement or all(len(set(row)) == 150 for row in found.tolist())
    assert gf.random.multinomial(gf.tensor(values[0]), 3).shape == (3,)


def test_random_integers_explain_what_does_not_fit() -> None:
    x, before = gf.tensor([0.5, 0.5]), gf.random.default_generator.state_dict()
    for call, error, says in (
        (lambda: gf.random.randint(2, low=3, high=3), ValueError, "low < high"),
        (lambda: gf.random.randint(2, high=1.5), ValueError, "integers low < high"),  # type: ignore[arg-type]
        (lambda: gf.random.randint(2, high=300, dtype="uint8"), ValueError, "from 0 to 255 for uint8"),
        (lambda: gf.random.randint(2, high=3, dtype="float32"), TypeError, "integer dtype; got float32"),
        (lambda: gf.random.bernoulli(0.5), TypeError, "got float"),  # type: ignore[arg-type]
        (lambda: gf.random.bernoulli(x.astype("int64")), TypeError, "got int64"),
        (lambda: gf.random.bernoulli(x * 3), ValueError, "numbers from 1.5 to 1.5"),
        (lambda: gf.random.bernoulli(x * math.nan), ValueError, "numbers from nan to nan"),
        (lambda: gf.random.multinomial(x, 3), ValueError, "at most 2, the categories"),
        (lambda: gf.random.multinomial(x, 0), ValueError, "at least 1"),
        (lambda: gf.random.multinomial(x[None, None], 1), ValueError, "shape"),
        (lambda: gf.random.multinomial(-x, 1), ValueError, "finite weights >= 0"),
        (lambda: gf.random.multinomial(x / 0.0, 1), ValueError, "to inf"),
        (lambda: gf.random.multinomial(x * 0, 1, replacement=True), ValueError, "a weight above 0 in each row"),
        (lambda: gf.random.multinomial(gf.tensor([1.0, 0.0]), 2), ValueError, "2 weights above 0 in each row"),
    ):  # fmt: skip
        with np.errstate(divide="ignore"), pytest.raises(error, match=says):
            call()
    assert gf.random.default_generator.state_dict() == before


def test_a_captured_step_draws_new_integers(device: str) -> None:
    weights = gf.tensor([0.1, 0.4, 0.5])

    def step() -> gf.Tensor:
        first = gf.random.randint(3, low=-5, high=50).astype("float32")
        second = gf.random.multinomial(weights, 3).astype("float32") + gf.random.multinomial(
            weights, 3, replacement=True
        )
        return first + 100 * second + 1000 * gf.random.bernoulli(weights)

    gf.manual_seed(0)
    expected = [step().tolist() for _ in range(6)]
    captured = gf.capture(step)
    gf.manual_seed(0)
    assert [captured().tolist() for _ in range(6)] == expected
    assert len({tuple(row) for row in expected}) == 6


# ---------------------------------------------------------------------- dropout


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 0), (4, 3, 3)], ids=str)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1e-12])
def test_dropout_masks_follow_the_contract(shape: tuple[int, ...], p: float, device: str) -> None:
    backend = gf.get_backend(device)
    x = gf.ones(shape, dtype="float64")
    mask = dropout_mask(shape, p, 11, M64)
    for function in (backend.dropout, lambda *a: Backend.dropout(backend, *a)):
        out, residual = function(x.array, p, 11, M64)
        assert np.array_equal(backend.to_host(residual), mask)
        np.testing.assert_allclose(backend.to_host(out), mask / (1 - p), rtol=1e-15)


def test_dropout_of_a_transpose_depends_on_position_not_on_memory_order() -> None:
    x = gf.ones((5, 3)).T
    y = gf.dropout(x, 0.5, generator=gf.Generator(2))
    assert np.array_equal(y.numpy() > 0, dropout_mask((3, 5), 0.5, 2))


def test_dropout_draws_from_the_stream_and_keeps_the_mean() -> None:
    gf.manual_seed(0)
    a, b = gf.dropout(gf.ones(10_000), 0.25), gf.dropout(gf.ones(10_000), 0.25)
    assert a.tolist() != b.tolist()
    assert gf.random.default_generator.counter == 2 * 10_000 // 8
    # five standard errors: sqrt(0.25 / 0.75 / 10^4)
    assert abs(a.mean().item() - 1.0) < 5 * math.sqrt(0.25 / 0.75 / 1e4)


def test_dropout_without_training_or_probability_is_the_identity_and_draws_nothing() -> None:
    x = gf.ones(4)
    assert gf.dropout(x, 0.5, training=False) is x
    assert gf.dropout(x, 0.0) is x
    assert gf.random.default_generator.counter == 0


def test_dropout_of_p_near_1_still_drops() -> None:
    y = gf.dropout(gf.ones(1000), 1 - 1e-12)
    assert int((y != 0).sum()) == 0


# ---------------------------------------------------------------------- without uint64


class WithoutArithmetic(Backend):
    """NumPy without uint64 arithmetic; like PyTorch, which stores such arrays but cannot add them."""

    name = "less"
    device_count = classmethod(lambda cls: 1)
    diagnose = classmethod(lambda cls: gf.Diagnosis(True, "fine"))
    to_host = from_host = staticmethod(np.array)

    def __init__(self, index: int = 0) -> None:
        def refusing(function: Any) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                if any(getattr(a, "dtype", None) == np.uint64 for a in arguments):
                    raise NotImplementedError("no uint64 here")
                return function(*arguments, **options)

            return call

        for name in ARRAY_FUNCTIONS:
            if name not in ("zeros", "ones", "full", "empty", "arange", "asarray", "reshape"):
                setattr(self, name, refusing(getattr(CPU, name)))
        super().__init__(np, index)

    def synchronize(self) -> None: ...

    def memory_stats(self) -> MemoryStats:
        return MemoryStats(0, None, 0)


class WithoutDtype(WithoutArithmetic):
    """NumPy without the dtype uint64."""

    def find_dtypes(self, namespace: Any) -> dict[str, Any]:
        return {name: dtype for name, dtype in super().find_dtypes(namespace).items() if name != "uint64"}


DRAWS: dict[str, Any] = {
    "uniform": lambda: gf.random.uniform((3, 5), low=-1.0, high=2.0),
    "uniform float64": lambda: gf.random.uniform((3, 5), dtype="float64"),
    "normal": lambda: gf.random.normal((7,), std=2.0),
    "normal float16": lambda: gf.random.normal((7,), dtype="float16"),
    "nothing": lambda: gf.random.normal((0, 3)),
    "randint": lambda: gf.random.randint((3, 5), low=-4, high=9, dtype="int8"),
    "bernoulli": lambda: gf.random.bernoulli(gf.full((3, 5), 0.5)),
    "multinomial": lambda: gf.random.multinomial(gf.tensor([[0.1, 0.4, 0.5]] * 3), 2),
    "permutation": lambda: gf.random.permutation(11),
    "dropout": lambda: gf.dropout(gf.ones((3, 3)), 0.4),
    "weights": lambda: gf.nn.MLP([3, 4, 2], "tanh").state_dict()["0.weight"],
}


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("kind", [WithoutArithmetic, WithoutDtype])
def test_a_library_without_uint64_gets_its_random_numbers_from_the_host(
    kind: type[Backend], draw: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits, also in later draws; and `kernels` says where they come from."""
    monkeypatch.setattr(discovery, "_registered", {})
    monkeypatch.setattr(registry, "_backends", {gf.Device("cpu"): CPU})
    gf.register_backend("less", kind)
    with gf.use_device("less"):
        gf.manual_seed(3)
        found = [DRAWS[draw]() for _ in range(2)]
        assert {str(x.device) for x in found} == {"less:0"}
        kernels = gf.get_backend("less").kernels()
    gf.manual_seed(3)
    for x in found:
        expected = DRAWS[draw]()
        assert x.dtype == expected.dtype
        assert x.numpy().tobytes() == expected.numpy().tobytes()
    assert {name for name, how in kernels.items() if how == "host"} == {"random_bits", "dropout"}
    assert "host" not in CPU.kernels().values()


def test_a_model_trains_without_uint64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "_registered", {"less": WithoutArithmetic})
    losses = {}
    for device in ("cpu", "less"):
        gf.manual_seed(0)
        with gf.use_device(device):
            model = gf.nn.MLP([4, 8, 2], dropout=0.2)
            optimizer = gf.optim.Adam(model.parameters(), lr=0.01)
            for _ in range(3):
                optimizer.zero_grad()
                loss = model(gf.ones((5, 4))).square().mean()
                loss.backward()
                optimizer.step()
        losses[device] = loss.item()
    registry._backends.pop(gf.Device("less"))
    assert losses["less"] == pytest.approx(losses["cpu"], rel=1e-5)


def _draw(_: int) -> tuple[int, list[float]]:
    time.sleep(0.2)  # so that each worker gets a task
    return os.getpid(), gf.random.uniform((4,), device="cpu").tolist()


def _seed_worker(seed: int) -> None:
    gf.manual_seed(seed + multiprocessing.current_process()._identity[0])


def test_threads_that_share_a_generator_draw_different_words() -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        generator = gf.random.Generator(0)
        with ThreadPoolExecutor(8) as pool:
            drawn = list(pool.map(lambda _: [generator.draw(4)[1] for _ in range(2000)], range(8)))
    finally:
        sys.setswitchinterval(before)
    assert sorted(word for words in drawn for word in words) == list(range(16_000))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_forked_workers_draw_equal_numbers_until_each_is_seeded() -> None:
    fork = multiprocessing.get_context("fork")
    for initializer, different in ((None, 1), (_seed_worker, 2)):
        with fork.Pool(2, initializer, (7,) if initializer else ()) as pool:
            drawn = dict(pool.map(_draw, range(2), chunksize=1))
        assert len(drawn) == 2
        assert len({str(values) for values in drawn.values()}) == different


def test_a_shallow_copy_of_a_generator_draws_the_same_and_advances_independently() -> None:
    generator = gf.Generator(3)
    gf.random.uniform((3,), generator=generator)
    twin = copy.copy(generator)
    first = gf.random.uniform((5,), generator=generator).tolist()
    assert gf.random.uniform((5,), generator=twin).tolist() == first
    twin.manual_seed(9)
    assert generator.key != twin.key
