"""Memory that tensors on a GPU share with PyTorch, JAX and CuPy, and the order of work in their streams."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.dtypes import DTYPES
from tests.devices import require_gpu
from tests.test_cli import child_environment

pytestmark = pytest.mark.gpu


@pytest.fixture
def torch() -> Any:
    require_gpu()
    found = pytest.importorskip("torch", exc_type=ImportError)
    if not found.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    return found


@pytest.mark.parametrize("dtype", sorted(set(DTYPES) - {"bfloat16"}))
def test_memory_is_shared_with_pytorch(torch: Any, dtype: str) -> None:
    x = gf.tensor([[0, 1, 1], [1, 0, 1]], dtype=dtype, device="cuda")
    for source in (x, x.T, x[:, ::2], x[1:1], x[0, 0]):
        theirs = torch.from_dlpack(source)
        assert str(theirs.dtype) == f"torch.{dtype}"
        assert (theirs.device.type, theirs.tolist()) == ("cuda", source.tolist())
        assert theirs.data_ptr() == source.array.data.ptr or not source.size
        back = gf.from_dlpack(theirs)
        assert (back.device, back.dtype, back.tolist()) == (gf.Device("cuda"), DTYPES[dtype], source.tolist())
    torch.from_dlpack(x)[0, 0] = 1
    assert x.tolist()[0] == [1, 1, 1]
    theirs = torch.zeros(3, device="cuda")
    gf.from_dlpack(theirs)[1] = 5.0
    assert theirs.tolist() == [0.0, 5.0, 0.0]


def test_work_of_one_stream_waits_for_that_of_the_other(torch: Any) -> None:
    """Long work in a stream of each library, then the exchange, and a read in the stream of the other."""
    n = 4096
    for _ in range(3):
        with torch.cuda.stream(torch.cuda.Stream()):
            theirs = torch.eye(n, device="cuda")
            for _ in range(20):
                theirs = theirs @ torch.eye(n, device="cuda")
            theirs *= 3
            with gf.get_backend("cuda").stream():
                assert (gf.from_dlpack(theirs).sum() == 3.0 * n).item()
        with gf.get_backend("cuda").stream():
            ours = gf.eye(n, device="cuda")
            for _ in range(20):
                ours = ours @ gf.eye(n, device="cuda")
            ours = ours * 3
            with torch.cuda.stream(torch.cuda.Stream()):
                assert torch.from_dlpack(ours).sum().item() == 3.0 * n


def test_other_libraries_take_the_memory(torch: Any) -> None:
    cupy = importlib.import_module("cupy")
    x = gf.arange(6, dtype="float32", device="cuda").reshape(2, 3)
    address = x.array.data.ptr
    assert cupy.from_dlpack(x).data.ptr == cupy.asarray(x).data.ptr == address
    assert torch.as_tensor(x, device="cuda").data_ptr() == address  # through __cuda_array_interface__
    assert x.__cuda_array_interface__["data"][0] == address
    assert np.from_dlpack(x, device="cpu").tolist() == x.tolist()
    assert gf.from_dlpack(torch.ones(3, device="cuda"), device="cpu").tolist() == [1.0] * 3
    assert gf.from_dlpack(torch.ones(3), device="cuda").device == "cuda"
    leaf = gf.ones(3, device="cuda", requires_grad=True)
    for take in (torch.from_dlpack, cupy.from_dlpack, cupy.asarray):
        with pytest.raises(BufferError, match=r"use \.detach\(\)"):
            take(leaf)
    with pytest.raises(BufferError, match="require gradient"):
        gf.from_dlpack(torch.ones(3, device="cuda", requires_grad=True))
    half = torch.from_dlpack(gf.ones(3, "bfloat16", "cuda"))
    assert (half.dtype, gf.from_dlpack(half).dtype) == (torch.bfloat16, gf.bfloat16)
    assert gf.from_dlpack(torch.ones(3).pin_memory()).device == "cpu"


WITH_JAX = """
import jax
import gradflow as gf

assert jax.default_backend() == "gpu"
x = gf.from_dlpack(jax.numpy.ones(3))
print(x.device, x.tolist(), jax.numpy.from_dlpack(x * 2).tolist())
"""


def test_memory_is_shared_with_jax() -> None:
    require_gpu()
    pytest.importorskip("jax_cuda13_plugin", exc_type=ImportError)
    environment = child_environment(XLA_PYTHON_CLIENT_PREALLOCATE="false")
    done = subprocess.run([sys.executable, "-c", WITH_JAX], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["cuda:0 [1.0, 1.0, 1.0] [2.0, 2.0, 2.0]"], done.stderr


def test_an_optimizer_keeps_the_memory_of_pytorch(torch: Any) -> None:
    theirs = torch.ones((1, 2), device="cuda")
    layer = gf.nn.Linear(2, 1, device="cuda")
    layer.weight = gf.nn.Parameter(gf.from_dlpack(theirs))
    optimizer = gf.optim.SGD(layer.parameters(), lr=0.5)
    layer(gf.ones((1, 2), device="cuda")).sum().backward()
    optimizer.step()
    assert theirs.tolist() == layer.weight.tolist() == [[0.5, 0.5]]
