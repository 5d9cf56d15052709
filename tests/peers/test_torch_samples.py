"""PyTorch's sample inputs (OpInfos), run through gradflow: values and two derivatives, in float64.

`python tests/peers/test_torch_samples.py` prints, for each operation, how many samples ran and were excluded, and why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch_adapter import NOT_SHARED, SHARED, Exclusion, Shared, converted, leaves

import gradflow as gf

torch = pytest.importorskip("torch", reason="PyTorch, the peer, is not installed")
pytest.importorskip("expecttest", reason="expecttest, which PyTorch's sample inputs need, is not installed")

RTOL = 1e-10
ATOL = 1e-12
"""|ours - theirs| <= RTOL |theirs| + ATOL max(1, max |theirs|), element by element."""


def load_infos() -> dict[str, Any]:
    """Return PyTorch's OpInfos by name, with ":variant" for variants."""
    before = None
    try:
        import hypothesis

        before = hypothesis.settings.get_current_profile_name()
    except (ImportError, AttributeError):  # not installed, or too old
        pass
    try:
        from torch.testing._internal.common_methods_invocations import op_db
    except ImportError as error:
        pytest.skip(f"PyTorch's sample inputs cannot be imported: {error}")
    finally:
        if before is not None:  # the import loads its own hypothesis profile
            hypothesis.settings.load_profile(before)
    return {":".join(filter(None, (info.name, info.variant_test_name))): info for info in op_db}


@pytest.fixture(scope="module")
def infos() -> dict[str, Any]:
    return load_infos()


def samples_of(info: Any, shared: Shared) -> list[Any]:
    """Return the samples, always the same, with leaves that require a gradient if the operation has one."""
    dtype = getattr(torch, shared.dtype)
    torch.manual_seed(0)
    return list(info.sample_inputs("cpu", dtype, requires_grad=info.supports_autograd and dtype.is_floating_point))


def exclusion_of(sample: Any, shared: Shared) -> Exclusion | None:
    return next((e for e in shared.exclusions if e.matches(sample.input, *sample.args, **sample.kwargs)), None)


def assert_agrees(what: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.dtype == theirs.dtype, f"{what} is {ours.dtype}, not {theirs.dtype}"
    assert ours.shape == theirs.shape, f"{what} has shape {ours.shape}, not {theirs.shape}"
    if theirs.dtype.kind != "f":
        np.testing.assert_array_equal(ours, theirs, what)
        return
    scale = np.max(np.abs(theirs), initial=1.0, where=np.isfinite(theirs))
    np.testing.assert_allclose(ours, theirs, rtol=RTOL, atol=ATOL * scale, err_msg=what)


def projected(parts: list[Any], to_weight: Callable[[np.ndarray], Any], seed: int) -> Any:
    """Return the sum of all elements, each times a number that depends only on the seed."""
    rng = np.random.default_rng(seed)
    total = None
    for part in parts:
        term = (part * to_weight(np.asarray(rng.normal(size=tuple(part.shape)), part_dtype(part)))).sum()
        total = term if total is None else total + term
    return total


def part_dtype(part: Any) -> str:
    return str(part.dtype).removeprefix("torch.")


def torch_gradients(parts: list[Any], inputs: list[Any], seed: int) -> list[Any]:
    """Return recorded gradients; zeros for inputs that are not used."""
    total = projected(parts, torch.from_numpy, seed) if parts else None
    if total is None or not total.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    return list(torch.autograd.grad(total, inputs, create_graph=True, allow_unused=True, materialize_grads=True))


def our_gradients(parts: list[Any], inputs: list[Any], seed: int, recorded: bool) -> list[Any]:
    total = projected(parts, gf.tensor, seed) if parts else None
    for x in inputs:
        x.zero_grad()
    if total is not None and total.requires_grad:
        total.backward(create_graph=recorded)
    found = [gf.zeros_like(x) if x.grad is None else x.grad for x in inputs]
    for x in inputs:
        x.zero_grad()
    return found


def floating(results: list[Any]) -> list[int]:
    return [i for i, y in enumerate(results) if y.dtype.is_floating_point]


def compare(info: Any, shared: Shared, sample: Any) -> None:
    """Raise if gradflow's result for the sample differs from PyTorch's."""
    inputs = [x for x in leaves((sample.input, sample.args, sample.kwargs)) if getattr(x, "requires_grad", False)]
    theirs = list(leaves(shared.take(info.op(sample.input, *sample.args, **sample.kwargs))))
    made: dict[int, gf.Tensor] = {}
    arguments, options = converted((sample.input, *sample.args), made), converted(sample.kwargs, made)

    def call() -> list[gf.Tensor]:
        gf.manual_seed(0)
        return list(leaves(shared.call(*arguments, **options)))

    ours = call()
    assert len(ours) == len(theirs), f"{len(ours)} results, not {len(theirs)}"
    for i, (y, t) in enumerate(zip(ours, theirs, strict=True)):
        assert str(y.device) == "cpu"
        assert_agrees(f"result {i}", y.detach().numpy(), t.detach().numpy())
    if not inputs:
        return
    chosen = floating(theirs)
    leaves_of_ours = [made[id(x)] for x in inputs]
    first = torch_gradients([theirs[i] for i in chosen], inputs, 1)
    found = our_gradients([ours[i] for i in chosen], leaves_of_ours, 1, False)
    for i, (g, t) in enumerate(zip(found, first, strict=True)):
        assert_agrees(f"the gradient of input {i}", g.numpy(), t.numpy(force=True))
    if not info.supports_gradgrad or shared.order < 2:
        return
    again = call()
    recorded = our_gradients([again[i] for i in chosen], leaves_of_ours, 1, True)
    second = torch_gradients(first, inputs, 2)
    for i, (g, t) in enumerate(zip(our_gradients(recorded, leaves_of_ours, 2, False), second, strict=True)):
        assert_agrees(f"the second derivative by input {i}", g.numpy(), t.numpy(force=True))


def described(sample: Any) -> str:
    def one(x: Any) -> str:
        if isinstance(x, torch.Tensor):
            return f"{part_dtype(x)}{tuple(x.shape)}"
        return f"[{', '.join(map(one, x))}]" if isinstance(x, (list, tuple)) else repr(x)

    parts = [one(sample.input), *map(one, sample.args), *(f"{k}={one(v)}" for k, v in sample.kwargs.items())]
    return f"({', '.join(parts)})"


def run(name: str, info: Any) -> tuple[int, Counter[str]]:
    """Return the samples that agree, and the excluded ones by reason. Raises AssertionError if a sample disagrees."""
    shared = SHARED[name]
    ran, excluded = 0, Counter[str]()
    for sample in samples_of(info, shared):
        exclusion = exclusion_of(sample, shared)
        with np.errstate(all="ignore"):  # PyTorch does not warn of NaN either
            try:
                compare(info, shared, sample)
            except Exception as error:
                if exclusion is None:
                    raise AssertionError(f"{name}{described(sample)}: {error}") from error
                excluded[exclusion.reason] += 1
            else:
                assert exclusion is None, f"{name}{described(sample)} is excluded, but agrees: {exclusion.reason}"
                ran += 1
    return ran, excluded


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")  # of PyTorch's kl_div
@pytest.mark.parametrize("name", SHARED)
def test_samples_of_torch(name: str, infos: dict[str, Any], record_property: Callable[[str, object], None]) -> None:
    assert name in infos, "PyTorch has no such OpInfo"
    ran, excluded = run(name, infos[name])
    record_property("samples run", ran)
    record_property("samples excluded", dict(excluded))
    assert ran, "all samples are excluded"
    unused = [e.reason for e in SHARED[name].exclusions if not excluded[e.reason]]
    assert not unused, f"exclusions that no sample needs: {unused}"


def test_what_is_not_shared_exists_in_torch(infos: dict[str, Any]) -> None:
    assert set(NOT_SHARED) <= set(infos)
    assert not set(NOT_SHARED) & set(SHARED)


def main() -> None:
    """Print the counts."""
    total, reasons = 0, Counter[str]()
    known = load_infos()
    for name in SHARED:
        ran, excluded = run(name, known[name])
        total += ran
        reasons += excluded
        print(f"{name:50} {ran:4} ran {excluded.total():4} excluded")
    print(f"{len(SHARED)} OpInfos: {total} samples ran and agreed, {reasons.total()} excluded:")
    for reason, count in reasons.most_common():
        print(f"{count:6} {reason}")


if __name__ == "__main__":
    main()
