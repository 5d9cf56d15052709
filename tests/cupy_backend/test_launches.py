"""What a training step launches and moves on the CuPy backend with an emulated CuPy. EMULATED: nothing ran on a GPU.

`pytest -s -k table tests/cupy_backend/test_launches.py` prints the table.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import emulated_cupy
import numpy as np
import pytest
from emulated_cupy import State
from emulated_device import needs_compiler
from gradflow_cupy import cublaslt

import gradflow as gf
from gradflow.backend import ARRAY_FUNCTIONS

pytestmark = [pytest.mark.slow, needs_compiler]

ROWS = 48
"""The rows of a batch."""
LAUNCHES_NOTHING = ("empty", "asarray", "reshape", "broadcast_to", "permute_dims", "matrix_transpose", "squeeze",
                    "expand_dims", "flip")  # fmt: skip
"""The functions of CuPy that only make arrays or views."""
IN_PLACE = ("sgd_step", "adam_step", "rmsprop_step", "moment_step", "scale_by")
"""The kernels that read what they write."""


class Step(NamedTuple):
    """A step whose launches are counted.

    layers: between the linear layers, which have a bias and the widths of `WIDTHS`. Adds to `activation`.
    more: what it launches besides the 4 L + 1 of a step with ReLU.
    """

    activation: str | None = "relu"
    layers: Callable[[int], list[Any]] = lambda width: []
    loss: str = "cross_entropy"
    optimizer: str = "Adam"
    clip: bool = False
    dtype: str = "float32"
    more: dict[str, int] = {}  # noqa: RUF012


WIDTHS = [20, 16, 16, 10]
STEPS = {
    "relu": Step(),
    "relu, SGD": Step(optimizer="SGD"),
    "relu, RMSprop": Step(optimizer="RMSprop"),
    "relu, NAdam": Step(optimizer="NAdam"),
    "gelu": Step("gelu", more={"activate": 2}),
    "tanh": Step("tanh", more={"activate": 2}),
    "silu": Step("silu", more={"activate": 2}),
    "dropout": Step(layers=lambda width: [gf.nn.Dropout(0.5)], more={"dropout": 2, "dropout_backward": 2}),
    "layer norm": Step(
        layers=lambda width: [gf.nn.LayerNorm(width)],
        more={"layer_norm": 2, "layer_norm_backward": 2, "layer_norm_columns": 2},
    ),
    "RMS norm": Step(
        layers=lambda width: [gf.nn.RMSNorm(width)],
        more={"layer_norm": 2, "layer_norm_backward": 2, "layer_norm_columns": 2},
    ),
    "batch norm": Step(
        layers=lambda width: [gf.nn.BatchNorm1d(width)], more={"batch_norm": 2, "batch_norm_backward": 2}
    ),
    "clipping": Step(clip=True, more={"square_sums": 1, "scale_by": 1}),
    "squared error": Step(loss="mse_loss"),
    "float16": Step(dtype="float16"),
    "bfloat16": Step(dtype="bfloat16"),
    "bfloat16, SGD": Step(optimizer="SGD", dtype="bfloat16"),
    "bfloat16, clipping": Step(clip=True, dtype="bfloat16", more={"square_sums": 1, "scale_by": 1}),
    "bfloat16, squared error": Step(loss="mse_loss", dtype="bfloat16"),
}
"""Steps of three layers, and what they launch besides the 13 of the first."""


class Launch(NamedTuple):
    """A launch of a kernel, and the bytes of the arrays that it reads and writes, each counted once."""

    name: str
    moved: int


@pytest.fixture
def launches(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """The launches from now on: products, kernels, and whatever CuPy itself launches."""
    found: list[Launch] = []

    def counted(name: str, function: Any) -> Any:
        return lambda *arguments, **options: (found.append(Launch(name, 0)), function(*arguments, **options))[1]

    for name in {*ARRAY_FUNCTIONS, "array", "ascontiguousarray", "asnumpy"}.difference(LAUNCHES_NOTHING):
        if (function := getattr(cupy, name)) is not None:
            monkeypatch.setattr(cupy, name, counted(name, function))
    array, launch = emulated_cupy.ndarray, emulated_cupy.Kernel.__call__
    monkeypatch.setattr(array, "__setitem__", counted("setitem", array.__setitem__))
    monkeypatch.setattr(cublaslt, "call", counted("product", cublaslt.call))
    view, gather = array.__getitem__, counted("gather", array.__getitem__)
    monkeypatch.setattr(array, "__getitem__", lambda x, key: (gather if isinstance(key, array) else view)(x, key))

    def run(kernel: emulated_cupy.Kernel, grid: Any, block: Any, arguments: Any) -> None:
        name, moved = kernel.name.partition("<")[0], 0
        for kind, x in zip(kernel.kinds, arguments, strict=True):
            if isinstance(x, array) and kind != "void*":
                moved += x.nbytes * (2 if name in IN_PLACE and not kind.startswith("const") else 1)
        found.append(Launch(name, moved))
        launch(kernel, grid, block, arguments)

    monkeypatch.setattr(emulated_cupy.Kernel, "__call__", run)
    return found


def steps_of(case: Step) -> Callable[[], Any]:
    """A step on the emulated device."""
    modules: list[Any] = []
    for i, (n, width) in enumerate(itertools.pairwise(WIDTHS)):
        last = i == len(WIDTHS) - 2
        modules += [gf.nn.Linear(n, width, activation=None if last else case.activation)]
        modules += [] if last else case.layers(width)
    model = gf.nn.Sequential(*modules).to(dtype=case.dtype)
    optimizer = getattr(gf.optim, case.optimizer)(model.parameters(), lr=0.01)
    x, labels = gf.random.normal((ROWS, WIDTHS[0])).astype(case.dtype), gf.tensor(np.arange(ROWS) % WIDTHS[-1])
    target = labels if case.loss == "cross_entropy" else gf.ones((ROWS, WIDTHS[-1]), dtype=case.dtype)

    def step() -> Any:
        optimizer.zero_grad()
        loss = getattr(gf, case.loss)(model(x), target)
        loss.backward()
        if case.clip:
            gf.optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    return step


def counted(launches: list[Launch], case: Step) -> tuple[list[Launch], int]:
    """The launches of a third step, and its transfers and waits."""
    with gf.use_device("emulated"):
        step = steps_of(case)
        for _ in range(3):
            launches.clear()
            before = State.transfers + State.synchronizations
            step()
            waits = State.transfers + State.synchronizations - before
    return list(launches), waits


@pytest.mark.parametrize("name", STEPS)
def test_launches_of_a_training_step(launches: list[Launch], name: str) -> None:
    """4 L + 1 for L layers, and what the case adds; no fill, no transfer and no wait.

    8 products, of which 3 add the bias and apply ReLU; 3 gradients of biases; one each for the loss and the optimizer.
    """
    case = STEPS[name]
    found, waits = counted(launches, case)
    layers = len(WIDTHS) - 1
    loss = "squared_error" if case.loss == "mse_loss" else case.loss
    update = "moment_step" if case.optimizer == "NAdam" else f"{case.optimizer.lower()}_step"
    expected = {"product": 3 * layers - 1, "bias_backward": layers, loss: 1, update: 1}
    assert Counter(launch.name for launch in found) == {**expected, **case.more}
    assert len(found) == 4 * layers + 1 + sum(case.more.values())
    assert waits == 0


def test_launches_of_a_scaled_step(launches: list[Launch]) -> None:
    """Eight more: three scale the loss and its gradient, one makes the flag 0; no transfer and no wait."""
    found = []
    with gf.use_device("emulated"):
        x, target, model = gf.ones((4, 3)), gf.zeros((4, 2)), gf.nn.Linear(3, 2)
        for enabled in (True, False):
            optimizer, scaler = gf.optim.Adam(model.parameters()), gf.optim.GradScaler(enabled=enabled)
            for _ in range(3):
                launches.clear()
                before = State.transfers + State.synchronizations
                optimizer.zero_grad()
                scaler.scale(gf.mse_loss(model(x), target)).backward()
                scaler.step(optimizer)
                scaler.update()
            assert State.transfers + State.synchronizations == before
            found.append(Counter(launch.name for launch in launches))
    scaled = ["multiply", "multiply", "squared_error", "setitem", "unscale", "gather", "count_step", "update_scale"]
    assert found[0] == found[1] + Counter(scaled)


def least(name: str) -> Counter[str]:
    """The bytes that the kernels of a step must move on paper: each operand once, each result once."""
    case, found = STEPS[name], Counter[str]()
    size = 4 if case.dtype == "float32" else 2
    hidden, classes = sum(ROWS * width for width in WIDTHS[1:-1]), ROWS * WIDTHS[-1]
    per_layer = 1 if name == "RMS norm" else 2 * ("layer_norm" in case.more or "batch_norm" in case.more)
    sizes = [width for width in WIDTHS[1:-1] for _ in range(per_layer)]
    sizes += [k for n, m in itertools.pairwise(WIDTHS) for k in (n * m, m)]
    parameters = sum(-(-size * k // 256) * 256 for k in sizes[:-1]) + size * sizes[-1]  # each starts at 256 bytes
    states = {"SGD": 3, "Adam": 7, "NAdam": 7, "RMSprop": 5}[case.optimizer]
    found["moment_step" if case.optimizer == "NAdam" else f"{case.optimizer.lower()}_step"] = states * parameters
    if case.loss == "cross_entropy":
        found["cross_entropy"] = size * (2 * classes + 1) + 8 * ROWS
    else:
        found["squared_error"] = size * (3 * classes + 1)
    found["bias_backward"] = size * (3 * hidden + classes + sum(WIDTHS[1:]))
    if "activate" in case.more:
        found["activate"] = 4 * 2 * hidden
    if "dropout" in case.more:
        found["dropout"] = found["dropout_backward"] = (4 * 2 + 1) * hidden
    if "layer_norm" in case.more:
        stats, weights = 4 * 2 * ROWS * (len(WIDTHS) - 2), 4 * sum(WIDTHS[1:-1])
        found["layer_norm"] = 4 * 2 * hidden + stats + per_layer * weights
        found["layer_norm_backward"] = 4 * 3 * hidden + stats + weights
        found["layer_norm_columns"] = 4 * 2 * hidden + stats + per_layer * weights
    if "batch_norm" in case.more:
        columns = 4 * sum(WIDTHS[1:-1])  # weight, bias, two running statistics, and two of the batch
        found["batch_norm"] = 4 * 2 * hidden + 6 * columns + 8 * (len(WIDTHS) - 2)
        found["batch_norm_backward"] = 4 * 3 * hidden + 5 * columns
    if case.clip:
        blocks, padding = -(-parameters // 16 // 256), 8 * (parameters // size - sum(sizes))
        found["square_sums"], found["scale_by"] = parameters + size + 4 * (blocks + 1), 2 * parameters + 4 + padding
    return found


@pytest.mark.parametrize("name", STEPS)
def test_kernels_move_no_more_than_they_must(launches: list[Launch], name: str) -> None:
    """Of tanh, as of other activations in place, the product's result is read and overwritten: one array, counted once.

    Some kernels read their rows twice or three times, from the cache: cross_entropy, layer_norm and batch_norm.
    """
    moved = Counter[str]()
    for launch in counted(launches, STEPS[name])[0]:
        moved[launch.name] += launch.moved
    del moved["product"]
    assert moved == least(name)


def test_the_table(launches: list[Launch]) -> None:
    layers = len(WIDTHS) - 1
    lines = [
        "| step of three layers | launches | products | kernels | transfers, waits, fills |",
        "|---|---|---|---|---|",
    ]
    for name, case in STEPS.items():
        found, waits = counted(launches, case)
        products = sum(launch.name == "product" for launch in found)
        lines.append(f"| {name} | {len(found)} | {products} | {len(found) - products} | {waits} |")
        assert len(found) == 4 * layers + 1 + sum(case.more.values())
    print("\n" + "\n".join(lines))


def test_cross_entropy_of_smoothed_and_ignored_labels_is_one_launch(launches: list[Launch]) -> None:
    with gf.use_device("emulated"):
        x, labels = gf.ones((ROWS, 5), requires_grad=True), gf.tensor(np.arange(ROWS) % 6 - 1)
        x.backend.seed(x.backend.single)  # made once
        gf.cross_entropy(x, labels, label_smoothing=0.1, ignore_index=-1)
        launches.clear()
        gf.cross_entropy(x, labels, label_smoothing=0.1, ignore_index=-1).backward()
        assert [launch.name for launch in launches] == ["cross_entropy", "array"]  # the leaf has a copy


@pytest.mark.parametrize("loss", ["cross_entropy", "mse_loss"])
def test_a_loss_makes_its_gradient_only_where_there_may_be_a_backward_pass(launches: list[Launch], loss: str) -> None:
    """Then it has an array more, and the pass launches nothing from the seed, and one kernel from another gradient."""
    with gf.use_device("emulated"):
        x = gf.ones((ROWS, 5), requires_grad=True)
        target = gf.tensor(np.arange(ROWS) % 5) if loss == "cross_entropy" else gf.zeros((ROWS, 5))
        x.backend.seed(x.backend.single)  # made once
        with gf.no_grad():
            getattr(gf, loss)(x, target)
            launches.clear()
            getattr(gf, loss)(x, target)
        value = getattr(gf, loss)(x, target)
        evaluated, trained = launches
        assert trained.moved == evaluated.moved + 4 * ROWS * 5
        launches.clear()
        value.backward(retain_graph=True)
        assert [launch.name for launch in launches] == ["array"]  # the leaf has a copy
        factor = gf.tensor(2.0)
        launches.clear()
        value.backward(factor)
        assert [launch.name for launch in launches] == [evaluated.name, "add"]
        assert np.allclose(
            x.grad.numpy(), 3 * gf.grad(lambda z: getattr(gf, loss)(z, target))(x.detach()).numpy(), rtol=1e-6
        )
