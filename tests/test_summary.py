"""`nn.summary`: counts as counted by hand, memory as the fake device counts it; the model stays as it is."""

from __future__ import annotations

import gc
import re
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import gradflow as gf
import gradflow.testing  # registers the device fake
from gradflow import nn, optim

PADDING = 255 * 5 + 63 * 8  # bytes a parameter: of values, gradients and three state arrays, and indices of padding


class Twice(nn.Module):
    """Calls one layer twice, and multiplies matrices itself."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 2)
        self.mixing = nn.Parameter(gf.ones((4, 3)))

    def forward(self, x: gf.Tensor) -> gf.Tensor:
        return self.shared(self.shared(x)) @ self.mixing


class Chain(nn.Module):
    """Calls the only layer of each block, one after another."""

    def __init__(self, blocks: nn.Sequential) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, x: gf.Tensor) -> gf.Tensor:
        for block in self.blocks:
            for layer in block.children():
                x = layer(x)
        return x


class Products(nn.Module):
    """Multiplies matrices; the work of one product does not grow with the batch, that of another with its square."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(gf.ones((4, 6)))

    def forward(self, x: gf.Tensor) -> gf.Tensor:
        h = x @ (self.w @ gf.matrix_transpose(self.w))
        return h @ gf.matrix_transpose(h)


class Pair(nn.Module):
    """Takes labels and vectors, and returns two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(gf.ones((7, 5)))
        self.body = nn.Sequential(nn.Linear(8, 6), nn.Sequential(nn.Tanh(), nn.Linear(6, 2, bias=False)))

    def forward(self, labels: gf.Tensor, x: gf.Tensor) -> dict[str, gf.Tensor]:
        both = gf.concat([gf.take(self.table, labels, axis=0), x], axis=-1)
        return {"scores": self.body(both), "both": both}


def numbers(layer: nn.LayerSummary) -> tuple[Any, ...]:
    return layer.name, layer.type, layer.outputs, layer.parameters, layer.multiply_adds


def test_a_perceptron_is_counted_as_by_hand() -> None:
    found = nn.summary(nn.MLP([784, 512, 512, 10]), (784,))
    assert [numbers(layer) for layer in found.layers] == [
        ("0", "Linear", ((1, 512),), 784 * 512 + 512, 784 * 512),
        ("1", "Linear", ((1, 512),), 512 * 512 + 512, 512 * 512),
        ("2", "Linear", ((1, 10),), 512 * 10 + 10, 512 * 10),
    ]
    assert found.multiply_adds == 784 * 512 + 512 * 512 + 512 * 10
    assert found.parameters == found.trainable == 669_706
    assert found.bytes == 4 * found.parameters


def test_layers_of_every_kind_have_rows_and_shapes() -> None:
    model = nn.Sequential(nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 4), nn.ReLU(), nn.Dropout(0.1), nn.Linear(4, 2))
    found = nn.summary(model, (3, 4), 32)
    shapes = [layer.outputs for layer in found.layers]
    assert shapes == [((32, n),) for n in (12, 12, 4, 4, 4, 2)]
    assert [layer.parameters for layer in found.layers] == [0, 24, 52, 0, 0, 10]
    assert found.multiply_adds == 12 * 4 + 4 * 2
    assert found.inputs == (((32, 3, 4), "float32"),)


def test_a_layer_that_is_called_twice_counts_its_parameters_once() -> None:
    found = nn.summary(Twice(), 4)
    assert [(*numbers(layer), layer.calls) for layer in found.layers] == [
        ("", "Twice", ((1, 3),), 12, 12, 1),
        ("shared", "Linear", ((1, 4),), 20, 2 * 16, 2),
        ("unused", "Linear", (), 10, 0, 0),
    ]
    assert found.parameters == 42
    assert "not called" in str(found)


@pytest.mark.parametrize("batch", [1, 3, 8, 100])
def test_products_may_be_constant_or_grow_with_the_square_of_the_batch(batch: int) -> None:
    found = nn.summary(Products(), 4, batch)
    assert found.multiply_adds == 4 * 6 * 4 + 4 * 4 + 4
    assert found.batch_multiply_adds == 4 * 6 * 4 + batch * 4 * 4 + batch * batch * 4
    assert found.layers[0].outputs == ((batch, batch),)
    assert f"; {found.batch_multiply_adds:,} for the batch" in str(found)


def test_parameters_that_two_layers_have_count_once() -> None:
    one, two = nn.Linear(3, 3), nn.Linear(3, 3)
    two.weight = one.weight
    found = nn.summary(nn.Sequential(one, two), 3)
    assert [layer.parameters for layer in found.layers] == [12, 3]
    assert found.memory["cpu"].parameters == 4 * 15
    module = nn.Linear(3, 3)
    assert nn.summary(nn.Sequential(module, nn.Sequential(module)), 3).parameters == 12


def test_several_inputs_and_integers_and_nested_modules() -> None:
    found = nn.summary(Pair(), [(), (3,)], 5, dtype=["int64", None])
    assert [numbers(layer) for layer in found.layers] == [
        ("", "Pair", ((5, 2), (5, 8)), 35, 0),
        ("body.0", "Linear", ((5, 6),), 54, 48),
        ("body.1.0", "Tanh", ((5, 6),), 0, 0),
        ("body.1.1", "Linear", ((5, 2),), 12, 12),
    ]


def test_frozen_parameters_have_no_gradients() -> None:
    model = nn.MLP([4, 3, 2])
    model[0].requires_grad_(False)
    found = nn.summary(model, 4)
    assert (found.parameters, found.trainable) == (23, 8)
    assert (found.memory["cpu"].parameters, found.memory["cpu"].gradients) == (4 * 23, 4 * 8)
    assert "8 are trained, 15 are frozen" in str(found)
    assert nn.summary(model.requires_grad_(False), 4).memory["cpu"].activations == 0


def test_an_optimizer_keeps_gradients_of_frozen_parameters_too() -> None:
    """What the device counts, so the summary tells it."""

    def in_use() -> int:
        gc.collect()
        return gf.memory_stats("fake")["current"] or 0

    before = in_use()
    model = nn.MLP([50, 100, 10], device="fake")
    model[0].requires_grad_(False)
    optimizer = optim.Adam(model.parameters())
    model(gf.ones((4, 50), device="fake")).sum().backward()
    optimizer.step()
    lasting = in_use() - before
    for given in (optim.Adam, optimizer):
        found = nn.summary(model, 50, optimizer=given).memory["fake:0"]
        assert found.gradients == found.parameters
        assert 0 <= lasting - (found.parameters + found.gradients + found.optimizer) <= 4 * PADDING
    assert nn.summary(model, 50).memory["fake:0"].gradients == 4 * 1010


def test_float64_and_float16_have_their_bytes() -> None:
    for dtype, size in (("float64", 8), ("float16", 2)):
        found = nn.summary(nn.MLP([4, 3, 2], dtype=dtype), 4)
        assert found.bytes == size * 23
        assert found.inputs == (((1, 4), dtype),)


# ---------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("make", "arrays"),
    [
        (optim.Adam, 2),
        (optim.AdamW, 2),
        (optim.SGD, 0),
        (partial(optim.SGD, momentum=0.9), 1),
        (partial(optim.RMSprop, momentum=0.9, centered=True), 3),
    ],
)
@pytest.mark.parametrize(("activation", "dropout"), [("relu", 0.0), ("tanh", 0.3), ("gelu", 0.0), ("silu", 0.2)])
def test_the_memory_of_a_step_is_what_the_device_counts(
    make: Callable[..., Any], arrays: int, activation: str, dropout: float
) -> None:
    def in_use() -> int:
        gc.collect()
        return gf.memory_stats("fake")["current"] or 0

    before = in_use()
    model = nn.MLP([50, 100, 70, 10], activation, dropout, device="fake")
    optimizer = make(model.parameters())
    x = gf.ones((32, 50), device="fake")
    for _ in range(2):
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    lasting = in_use() - before - 32 * 50 * 4
    output = model(x)
    saved = in_use() - before - lasting - 4 * output.size
    for given in (make, optimizer):
        found = nn.summary(model, 50, 32, optimizer=given).memory["fake:0"]
        assert found.activations == saved  # the inputs too
        assert found.optimizer == arrays * found.parameters
        predicted = found.parameters + found.gradients + found.optimizer
        assert 0 <= lasting - predicted <= PADDING * len([*model.parameters()])
        assert found.total == predicted + saved


def test_layers_that_are_one_operation_keep_as_much_as_layers_on_their_own() -> None:
    fused = nn.summary(nn.MLP([8, 16, 4]), 8, 10).memory
    apart = nn.summary(nn.Sequential(nn.Linear(8, 16, activation="relu"), nn.Linear(16, 4)), 8, 10).memory
    assert fused == apart
    assert fused["cpu"].activations == 10 * 4 * (8 + 16)


def test_views_of_one_memory_count_once() -> None:
    class Views(nn.Module):
        def forward(self, x: gf.Tensor) -> gf.Tensor:
            y = x * self.scale
            return gf.square(y) + gf.square(y.reshape(-1, 2).reshape(y.shape))

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(gf.ones(()))

    assert nn.summary(Views(), 6, 10).memory["cpu"].activations == 2 * 10 * 6 * 4  # of x and of y


def test_a_checkpoint_keeps_its_arguments_alone() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.body = nn.Linear(4, 4), nn.MLP([4, 64, 4])

        def forward(self, x: gf.Tensor) -> gf.Tensor:
            return gf.checkpoint(self.body, self.first(x))

    assert nn.summary(Part(), 4, 10).memory["cpu"].activations == 10 * 4 * (4 + 4)


def test_memory_is_told_for_each_device() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.here, self.there = nn.Linear(4, 8), nn.Linear(8, 2, device="fake")

        def forward(self, x: gf.Tensor) -> gf.Tensor:
            return self.there(self.here(x).to("fake"))

    found = nn.summary(Split(), 4, 10, optimizer=optim.Adam)
    here, there = found.memory["cpu"], found.memory["fake:0"]
    assert (here.parameters, here.optimizer, here.activations) == (160, 320, 10 * 4 * 4)
    assert (there.parameters, there.optimizer, there.activations) == (72, 144, 10 * 8 * 4)
    assert re.search(r"memory of a training step +cpu +fake:0", str(found))


# ---------------------------------------------------------------------- nothing changes


class Normed(nn.Module):
    """Keeps a running mean in a buffer, counts its calls, draws random numbers, and changes a list."""

    def __init__(self, generator: gf.Generator) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.drop, self.own = nn.Dropout(0.5), nn.Dropout(0.5, generator)
        self.register_buffer("mean", gf.zeros(3))
        self.count, self.seen = 0, list[Any]()

    def forward(self, x: gf.Tensor) -> gf.Tensor:
        self.count += 1
        self.seen.append(x.shape)
        with gf.no_grad():
            self.mean.copy_(0.9 * self.mean + 0.1 * x.mean(axis=0))
        return self.own(self.drop(self.layer(x))) + gf.random.normal(x.shape)


def test_nothing_is_changed() -> None:
    generator = gf.Generator(3)
    model = Normed(generator)
    hooked: list[Any] = []
    model.layer.register_forward_hook(lambda *_: hooked.append(1))
    model(gf.ones((2, 3))).sum().backward()
    model.drop.eval()
    captured = gf.capture(lambda x: model.layer(x).sum())

    def state() -> Any:
        return (
            {name: t.tolist() for name, t in model.state_dict().items()},
            [p.grad.tolist() for p in model.parameters() if p.grad is not None],
            [m.training for m in model.modules()],
            [vars(m).get("forward") for m in model.modules()],
            (model.count, list(model.seen), list(hooked)),
            [(g.key, g.counter) for g in (generator, gf.random.default_generator)],
            gf.is_grad_enabled(),
        )

    captured(gf.ones((2, 3)))
    before = state()
    with gf.no_grad():
        found = nn.summary(model, 3, 4, optimizer=optim.Adam)
    assert found.memory["cpu"].buffers == 12
    assert found.memory["cpu"].activations > 0
    nn.summary(model, 3, 4)
    with pytest.raises(ValueError, match="does not take"):
        nn.summary(model, 5)
    assert state() == before


class Keeping(nn.Module):
    """Keeps its last outputs, as one does to look at them, and what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.lock = nn.Linear(3, 3), threading.Lock()
        self.last: Any = None
        self.all = list[gf.Tensor]()

    def forward(self, x: gf.Tensor) -> gf.Tensor:
        with self.lock:
            self.last = self.layer(x)
        self.all.append(self.last)
        return self.last


def test_a_module_may_keep_what_it_computed_and_what_cannot_be_copied() -> None:
    model = Keeping()
    first = nn.summary(nn.Sequential(model), 3, 5)
    output = model(gf.ones((2, 3)))
    assert nn.summary(nn.Sequential(model), 3, 5) == first
    assert model.last is output
    assert len(model.all) == 1
    assert not output.is_leaf


def test_training_mode_decides_the_memory_of_a_step() -> None:
    model = nn.MLP([8, 16, 4], dropout=0.5)
    training = nn.summary(model, 8).memory
    assert nn.summary(model.eval(), 8).memory == training
    assert not model.training
    assert training["cpu"].activations > nn.summary(nn.MLP([8, 16, 4]), 8).memory["cpu"].activations


def test_a_trace_or_anomaly_check_around_it_sees_nothing() -> None:
    with gf.detect_anomaly():
        assert nn.summary(nn.MLP([2, 3, 1]), 2) == nn.summary(nn.MLP([2, 3, 1]), 2)


# ---------------------------------------------------------------------- text and mistakes


def test_the_table_fits_80_columns() -> None:
    deep: nn.Module = nn.Linear(3, 3)
    for i in range(12):
        outer = nn.Sequential()
        setattr(outer, f"a_rather_long_name_{i}", deep)
        deep = outer
    text = str(nn.summary(deep, 3, 65_536, optimizer=optim.RMSprop))
    assert max(map(len, text.splitlines())) <= 80
    assert "..." in text


def test_siblings_whose_names_are_cut_have_different_rows() -> None:
    model = nn.Module()
    model.blocks = nn.Sequential(nn.Module(), nn.Module())
    for block in model.blocks:
        block.attention_projection_with_a_long_name = nn.Linear(3, 3)
    rows = [line for line in str(nn.summary(Chain(model.blocks), 3, 65_536)).splitlines() if " Linear " in line]
    assert len({row.split()[0] for row in rows}) == len(rows) == 2
    assert all("..." in row and len(row) <= 80 for row in rows)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((nn.MLP([4, 3, 2]), 5), r"inputs of shape \(8, 5\), float32, a batch of 8 \(in 0, a Linear\): .*\(3, 4\)"),
        ((nn.Sequential(nn.Linear(4, 3), nn.Linear(2, 2)), 4), r"\(in 1, a Linear\): .*\(8, 3\).*\(2, 2\)"),
        ((nn.MLP([4, 3]), [4, 0]), r"input_shape is the shape of one sample, .* of at least 1; got \[4, 0\]"),
        ((nn.MLP([4, 3]), "4"), "input_shape is the shape of one sample"),
        ((nn.MLP([4, 3]), 4.5), "input_shape is the shape of one sample"),
        ((nn.MLP([4, 3]), 4, 0), "batch_size must be an integer of at least 1; got 0"),
    ],
)
def test_a_wrong_shape_is_named_with_its_layer(given: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nn.summary(*given)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.MLP, {}, "summary takes a module; got the class MLP: create a module, MLP(...)"),
        (lambda x: x, {}, "summary takes a module; got function"),
        (nn.MLP([4, 3]), {"dtype": "int64"}, "in 0, a Linear): linear needs one dtype for all: x is"),
        (nn.MLP([4, 3]), {"optimizer": "adam"}, "such as gradflow.optim.Adam; got 'adam'"),
        (Pair(), {}, "the model does not take inputs of shape (8, 4), float32"),
    ],
)
def test_what_is_no_model_or_optimizer_is_refused(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        nn.summary(model, 4, **options)


def test_one_dtype_is_for_each_input() -> None:
    with pytest.raises(ValueError, match="one for each of 2; got 3"):
        nn.summary(Pair(), [(), (3,)], dtype=["int64", None, None])


class Swallowing(nn.Module):
    """Catches the error of one layer; then another fails."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(5, 4), nn.Linear(7, 4)

    def forward(self, x: gf.Tensor) -> gf.Tensor:
        try:
            return self.a(x)
        except ValueError:
            pass
        return self.c(x)


class OwnCall(nn.Module):
    def __call__(self, x: gf.Tensor) -> gf.Tensor:
        raise ValueError("no layer")


def test_the_error_that_ended_the_pass_names_its_layer() -> None:
    with pytest.raises(ValueError, match=r"\(in c, a Linear\)"):
        nn.summary(Swallowing(), 4)
    with pytest.raises(ValueError, match="a batch of 8: no layer"):
        nn.summary(OwnCall(), 4)


def test_a_prompt_and_a_notebook_show_the_table() -> None:
    found = nn.summary(nn.MLP([4, 3]), 4)
    assert repr(found) == str(found)
    assert "parameters: 15 are trained, 0 are frozen" in repr(found)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.ones((200, 4)), "got ndarray of shape (200, 4); of the samples in it: (4,)"),
        (gf.ones((200, 4), device="cpu"), "got Tensor of shape (200, 4); of the samples in it: (4,)"),
        ([[0.5] * 4] * 200, "got [[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]"),
    ],
)
def test_samples_instead_of_their_shape_are_told_in_one_line(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        nn.summary(nn.MLP([4, 3]), given)
    assert len(str(raised.value)) < 500
    assert "\n" not in str(raised.value)
