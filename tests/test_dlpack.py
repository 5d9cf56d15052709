"""Memory that tensors share with PyTorch, JAX and NumPy through DLPack: aliasing, dtypes, layouts and refusals."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradflow as gf
import gradflow.testing  # the device "fake"
from gradflow.dtypes import DTYPES
from tests.test_cli import child_environment

EXCHANGED = sorted(set(DTYPES) - {"bfloat16"})
SHAPES: list[tuple[int, ...]] = [(3, 4), (), (0, 3), (5,)]


class Library:
    """NumPy or PyTorch: `make` its array of NumPy's, `take` one through DLPack."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.module = pytest.importorskip(name, exc_type=ImportError)
        self.take: Callable[[Any], Any] = self.module.from_dlpack

    def make(self, values: Any) -> Any:
        return self.module.from_numpy(values) if self.name == "torch" else values


@pytest.fixture(params=["numpy", "torch"])
def library(request: pytest.FixtureRequest) -> Library:
    return Library(request.param)


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", exc_type=ImportError)


def values(dtype: str, shape: tuple[int, ...] = (3, 4)) -> Any:
    x = np.random.default_rng(0).normal(0, 20, shape)
    return np.asarray(x > 0 if dtype == "bool" else np.abs(x).astype(dtype))


def address(x: gf.Tensor) -> int:
    return int(x.array.ctypes.data)


# ---------------------------------------------------------------------- from another library


@pytest.mark.parametrize("dtype", EXCHANGED)
def test_an_array_becomes_a_tensor(library: Library, dtype: str) -> None:
    for shape in SHAPES:
        expected = values(dtype, shape)
        x = gf.from_dlpack(library.make(expected))
        assert (x.dtype, x.shape, x.device, x.requires_grad) == (DTYPES[dtype], shape, gf.Device("cpu"), False)
        assert np.array_equal(x.numpy(), expected)
        assert (x == x).all().item()  # it is a tensor like others


def test_what_one_writes_the_other_sees(library: Library) -> None:
    theirs = library.make(np.zeros((3, 4), np.float32))
    x = gf.from_dlpack(theirs)
    theirs[1, 2] = 5.0
    assert x[1, 2].item() == 5.0
    x[0] = 7.0
    x *= 2.0
    assert np.asarray(theirs)[:2].tolist() == [[14.0] * 4, [0.0, 0.0, 10.0, 0.0]]
    copy = gf.from_dlpack(theirs, copy=True)
    theirs[1, 2] = 1.0
    assert (copy[1, 2].item(), x[1, 2].item()) == (10.0, 1.0)


def test_no_layout_is_copied(torch: Any) -> None:
    base = np.arange(24.0).reshape(4, 6)
    for view in (base.T, base[::2], base[:, 1::3], base[1:, 2], base[::-1], np.broadcast_to(base[0], (3, 6))):
        x = gf.from_dlpack(view)
        assert address(x) == view.ctypes.data
        assert x.tolist() == view.tolist()
        assert (x + 1).tolist() == (view + 1).tolist()
    theirs = torch.arange(24.0).reshape(4, 6)
    for view in (theirs.t(), theirs[::2], theirs[1:, 2], theirs[0].expand(3, 6)):
        x = gf.from_dlpack(view)
        assert address(x) == view.data_ptr()
        assert x.tolist() == view.tolist()


def test_the_tensor_keeps_the_memory_alive() -> None:
    class Values(np.ndarray):
        """An array that can be referred to weakly."""

    given = np.arange(4.0).view(Values)
    gone = weakref.ref(given)
    x = gf.from_dlpack(given)
    del given
    gc.collect()
    assert x.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert gone() is not None
    del x
    gc.collect()
    assert gone() is None


def test_read_only_arrays_stay_read_only() -> None:
    given = np.zeros(3)
    given.flags.writeable = False
    x = gf.from_dlpack(given)
    with pytest.raises(ValueError, match="its memory is read-only"):
        x[0] = 1.0
    assert (x + 1).tolist() == [1.0] * 3
    gf.from_dlpack(given, copy=True)[0] = 1.0
    assert x.tolist() == [0.0] * 3


class Elsewhere:
    """An array of a device that gradflow does not know."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 10, 1

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("its memory was asked for")


def test_what_cannot_be_taken_is_refused(torch: Any) -> None:
    refused = {
        "requires? grad": torch.ones(3, requires_grad=True),
        r"a torch\.Tensor of bfloat16: .*; convert it to float32 first": torch.ones(3, dtype=torch.bfloat16),
        r"a torch\.Tensor of complex64: .*; convert it to float32 first": torch.ones(3, dtype=torch.complex64),
        r"a torch\.Tensor of float8_e5m2: .*; convert it to float32 first": torch.ones(3).to(torch.float8_e5m2),
        r"a numpy\.ndarray of >f4: .*; convert it to float32 first": np.zeros(3, ">f4"),
        r"a numpy\.ndarray of <U4: .*; convert it to float32 first": np.array(["text"]),
        "DLPack's device 10:1 has no backend in gradflow": Elsewhere(),
    }
    for message, array in refused.items():
        with pytest.raises(BufferError, match=message):
            gf.from_dlpack(array)
    for other in ([1.0, 2.0], 3, None, object()):
        with pytest.raises(TypeError, match=r"from_dlpack takes an array with __dlpack__ .*with gradflow\.asarray"):
            gf.from_dlpack(other)
    assert gf.from_dlpack(torch.ones(3, requires_grad=True).detach()).tolist() == [1.0] * 3


def test_another_device_needs_a_copy(torch: Any) -> None:
    theirs = torch.ones(3)
    x = gf.from_dlpack(theirs, device="fake")
    assert (x.device, x.tolist()) == (gf.Device("fake"), [1.0] * 3)
    assert gf.from_dlpack(theirs, device="cpu").array.ctypes.data == theirs.data_ptr()
    with pytest.raises(BufferError, match="the array is on cpu, so fake:0 needs a copy of it"):
        gf.from_dlpack(theirs, device="fake", copy=False)
    with gf.use_device("fake"):
        assert gf.from_dlpack(theirs, copy=False).device == "cpu"  # where it is


# ---------------------------------------------------------------------- to another library


@pytest.mark.parametrize("dtype", EXCHANGED)
def test_a_tensor_becomes_an_array(library: Library, dtype: str) -> None:
    for shape in SHAPES:
        expected = values(dtype, shape)
        found = library.take(gf.tensor(expected))
        assert (str(found.dtype).rpartition(".")[2], tuple(found.shape)) == (dtype, shape)
        assert np.array_equal(np.asarray(found), expected)
    found = library.take(gf.tensor(expected).max() if dtype != "bool" else gf.tensor(expected).any())  # NumPy's scalar
    assert np.asarray(found) == expected.max()


def test_what_pytorch_writes_the_tensor_sees(torch: Any) -> None:
    x = gf.zeros((3, 4))
    theirs = torch.from_dlpack(x)
    theirs[1, 2] = 5.0
    assert x[1, 2].item() == 5.0
    with gf.no_grad():
        x.copy_(gf.ones((3, 4)))
    assert theirs.sum().item() == 12.0
    assert theirs.data_ptr() == address(x)
    del x
    gc.collect()
    assert theirs.sum().item() == 12.0
    view = gf.tensor(np.arange(24.0).reshape(4, 6)).T[::2]
    assert torch.from_dlpack(view).tolist() == view.tolist()
    assert torch.from_dlpack(view).data_ptr() == address(view)
    assert torch.from_dlpack(view, copy=True).data_ptr() != address(view)


def test_the_device_and_a_copy_are_as_the_consumer_asks() -> None:
    x = gf.ones(3)
    assert x.__dlpack_device__() == (1, 0)
    assert np.from_dlpack(x, copy=False).ctypes.data == address(x)
    assert np.from_dlpack(x, copy=True).ctypes.data != address(x)
    assert np.from_dlpack(x, device="cpu").ctypes.data == address(x)
    with pytest.raises(BufferError, match=r"to DLPack's device \(10, 0\) without a copy"):
        x.__dlpack__(dl_device=(10, 0), copy=False)
    with pytest.raises(BufferError, match="DLPack's device 10:0 has no backend"):
        x.__dlpack__(dl_device=(10, 0))
    with pytest.raises(BufferError, match="tensors on fake:0 are not exchanged through DLPack"):
        np.from_dlpack(gf.ones(3, device="fake"))
    with pytest.raises(AttributeError, match="a tensor on cpu has no __cuda_array_interface__"):
        _ = x.__cuda_array_interface__


def test_what_is_not_exported(torch: Any) -> None:
    """PyTorch 2.13 ends the process for reversed axes."""
    leaf = gf.ones(3, requires_grad=True)
    for x in (leaf, leaf * 2):
        with pytest.raises(BufferError, match=r"tensor that requires grad: use \.detach\(\)"):
            torch.from_dlpack(x)
    assert torch.from_dlpack(leaf.detach()).tolist() == [1.0] * 3
    reversed_ = gf.tensor([1.0, 2.0, 3.0]).flip()
    with pytest.raises(BufferError, match=r"reversed axes is not exported without a copy: use \.clone\(\)"):
        torch.from_dlpack(reversed_)
    for copied in (torch.from_dlpack(reversed_, copy=True), torch.from_dlpack(reversed_.clone())):
        assert copied.tolist() == [3.0, 2.0, 1.0]
    with pytest.raises(BufferError):  # NumPy's: it can tell that memory is read-only from version 1 on
        gf.broadcast_to(gf.ones(1), (3,)).__dlpack__()
    assert not np.from_dlpack(gf.broadcast_to(gf.ones(1), (3,))).flags.writeable


def test_bfloat16_is_not_exported() -> None:
    pytest.importorskip("ml_dtypes", reason="ml_dtypes, of the extra half, is not installed")
    with pytest.raises(BufferError, match=r"is not exported: .*; convert it with \.astype\('float32'\) first"):
        np.from_dlpack(gf.ones(3, dtype="bfloat16"))


# ---------------------------------------------------------------------- graphs, optimizers, captured steps


def test_what_another_library_overwrites_a_graph_does_not_notice(torch: Any) -> None:
    """gradflow's own in-place changes raise; those of PyTorch change the gradient, as the page says."""
    theirs = torch.tensor([1.0, 2.0])
    x, w = gf.from_dlpack(theirs), gf.tensor([3.0, 4.0], requires_grad=True)
    loss = (x * w).sum()
    theirs[0] = 10.0
    loss.backward()
    assert (loss.item(), w.grad.tolist()) == (11.0, [10.0, 2.0])
    loss = (x * w).sum()
    x[0] = 20.0
    with pytest.raises(RuntimeError, match="was changed in place after it was saved"):
        loss.backward()
    loss = (x * w).sum()
    gf.from_dlpack(x)[0] = 20.0
    with pytest.raises(RuntimeError, match="was changed in place after it was saved"):
        loss.backward()
    loss = (gf.from_dlpack(theirs, copy=True) * w).sum()
    theirs[0] = 30.0
    w.grad = None
    loss.backward()
    assert w.grad.tolist() == [20.0, 2.0]


@pytest.mark.parametrize("early", [True, False])
def test_an_optimizer_keeps_memory_that_is_shared(torch: Any, early: bool) -> None:
    """Whether it was exported before the optimizer was created or after that, or belongs to PyTorch."""
    layer = gf.nn.Linear(2, 1)
    shared = torch.from_dlpack(layer.weight.detach()) if early else None
    bias = torch.zeros(1)
    layer.bias = gf.nn.Parameter(gf.from_dlpack(bias))
    optimizer = gf.optim.SGD(layer.parameters(), lr=0.5)
    shared = shared if early else torch.from_dlpack(layer.weight.detach())
    before = shared.clone()
    layer(gf.ones((1, 2))).sum().backward()
    optimizer.step()
    assert shared.tolist() == layer.weight.tolist()
    assert (before - shared).tolist() == [[0.5, 0.5]]
    assert bias.tolist() == layer.bias.tolist() == [-0.5]


def test_a_step_that_shares_memory_is_not_replayed(torch: Any) -> None:
    def exporting(x: gf.Tensor) -> gf.Tensor:
        y = x * 2
        torch.from_dlpack(y).add_(1)
        return y

    def taking(x: gf.Tensor) -> gf.Tensor:
        return x + gf.from_dlpack(torch.ones(2))

    for step, expected in ((exporting, [3.0, 5.0]), (taking, [2.0, 3.0])):
        captured = gf.capture(step)
        for _ in range(4):
            assert captured(gf.tensor([1.0, 2.0])).tolist() == expected
        assert "memory" in captured.status


# ---------------------------------------------------------------------- JAX, in a process of its own: it warns of forks

WITH_JAX = f"""
import jax
import jax.numpy as jnp
import numpy as np
import gradflow as gf

jax.config.update("jax_enable_x64", True)
for dtype in {EXCHANGED}:
    for shape in {SHAPES}:
        expected = np.abs(np.random.default_rng(0).normal(0, 20, shape)).astype(dtype)
        theirs = jnp.array(expected)
        x = gf.from_dlpack(theirs)
        assert (x.dtype, x.shape) == (dtype, shape)
        assert x.array.ctypes.data == theirs.unsafe_buffer_pointer() or not x.size
        found = jnp.from_dlpack(gf.tensor(expected))
        assert (found.dtype, found.shape) == (dtype, shape)
        assert np.array_equal(found, expected) and np.array_equal(x.numpy(), expected)
assert jnp.from_dlpack(gf.tensor([[1.0, 2.0, 3.0]]).T).tolist() == [[1.0], [2.0], [3.0]]
x = gf.from_dlpack(jnp.zeros(3))
try:
    x[0] = 1.0
except ValueError as error:
    print("read-only" in str(error))
for take, given in ((jnp.from_dlpack, gf.ones(3, requires_grad=True)), (gf.from_dlpack, jnp.ones(3, "bfloat16"))):
    try:
        take(given)
    except BufferError as error:
        print(str(error)[-17:])
"""


@pytest.mark.slow
def test_jax_takes_and_gives_memory() -> None:
    pytest.importorskip("jax", exc_type=ImportError)
    done = subprocess.run(
        [sys.executable, "-c", WITH_JAX], env=child_environment(JAX_PLATFORMS="cpu"), capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True", "ad: use .detach()", " to float32 first"]
