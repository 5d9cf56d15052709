"""Weights of PyTorch's modules load into gradflow's and back, by position and name: the models compute the same."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradflow as gf
import gradflow.testing  # the device "fake"
from gradflow import nn
from tests.bounds import perceptron_bound
from tests.test_saving import equal

torch = pytest.importorskip("torch", exc_type=ImportError)
files = pytest.importorskip("safetensors.torch", exc_type=ImportError)

ACTIVATIONS = {
    "relu": (nn.ReLU, torch.nn.ReLU),
    "leaky_relu": (nn.LeakyReLU, torch.nn.LeakyReLU),
    "elu": (nn.ELU, torch.nn.ELU),
    "silu": (nn.SiLU, torch.nn.SiLU),
    "sigmoid": (nn.Sigmoid, torch.nn.Sigmoid),
    "tanh": (nn.Tanh, torch.nn.Tanh),
    "softplus": (nn.Softplus, torch.nn.Softplus),
    "selu": (nn.SELU, torch.nn.SELU),
    "mish": (nn.Mish, torch.nn.Mish),
    "softsign": (nn.Softsign, torch.nn.Softsign),
    "hardtanh": (nn.Hardtanh, torch.nn.Hardtanh),
    "gelu": (nn.GELU, lambda: torch.nn.GELU(approximate="tanh")),
    "gelu_exact": (lambda: nn.GELU(approximate="none"), torch.nn.GELU),
}
"""The activations by name, as modules of gradflow and of PyTorch."""

pytestmark = pytest.mark.filterwarnings("ignore:this model has the tanh form of GELU")


def torch_mlp(sizes: list[int], activation: str = "relu", dropout: float = 0.0, dtype: Any = torch.float32) -> Any:
    """The PyTorch modules that compute what `nn.MLP` computes."""
    layers: list[Any] = []
    for n, m in pairwise(sizes):
        layers.append(torch.nn.Linear(n, m))
        layers.append(ACTIVATIONS[activation][1]())
        if dropout:
            layers.append(torch.nn.Dropout(dropout))
    return torch.nn.Sequential(*layers[: -2 if dropout else -1]).to(dtype).eval()


def to_file(model: Any, path: Path) -> Path:
    files.save_file(model.state_dict(), path)
    return path


def from_file(model: Any, path: Path) -> Any:
    model.load_state_dict(files.load_file(path))
    return model


def logits(model: Any, x: Any) -> Any:
    """The results of a model of either library for a NumPy array."""
    if isinstance(model, nn.Module):
        return model.eval()(gf.tensor(x)).detach().numpy()
    with torch.no_grad():
        return model.eval()(torch.tensor(x)).numpy()


def assert_equal_logits(one: Any, other: Any, x: Any) -> None:
    """In float64, to 1e-12 of the largest logit, which counts as at least 1."""
    expected = logits(other, x)
    assert np.abs(logits(one, x) - expected).max() <= 1e-12 * max(1.0, np.abs(expected).max())


def test_random_perceptrons_have_the_same_logits(random_examples: Callable[[int], Any], tmp_path: Path) -> None:
    """Both ways; also more than ten layers, whose names are not in the order of the text."""
    from hypothesis import given
    from hypothesis import strategies as st

    path = tmp_path / "weights.safetensors"

    @random_examples(30)
    @given(st.data(), st.sampled_from(sorted(ACTIVATIONS)), st.booleans(), st.integers(0, 2**31))
    def check(data: Any, activation: str, dropout: bool, seed: int) -> None:
        sizes, p = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=14)), 0.5 * dropout
        torch.manual_seed(seed)
        x = np.random.default_rng(seed).standard_normal((5, sizes[0]))
        theirs = torch_mlp(sizes, activation, p, torch.float64)
        ours = nn.MLP(sizes, activation, p, dtype="float64").load(to_file(theirs, path), names="torch")
        assert_equal_logits(ours, theirs, x)

        ours = nn.MLP(sizes, activation, p, dtype="float64")
        ours.save(path, names="torch")
        assert_equal_logits(from_file(theirs, path), ours, x)

        single = torch_mlp(sizes, activation, p)
        ours = nn.MLP(sizes, activation, p).load(to_file(single, path), names="torch")
        x = x.astype("float32")
        found = logits(ours, x)
        expected, bound = perceptron_bound(ours, x)
        assert (np.abs(found - expected) <= bound).all()
        assert (np.abs(logits(single, x) - expected) <= bound).all()

    check()


def test_random_sequences_have_the_same_logits(random_examples: Callable[[int], Any], tmp_path: Path) -> None:
    """Of all layers, fused and not, and nested: the same modules there and here, and another nesting there."""
    from hypothesis import given
    from hypothesis import strategies as st

    path = tmp_path / "weights.safetensors"

    def layers(draw: Any) -> tuple[list[Any], list[Any], int | None]:
        """Layers of both libraries, in order, and the number of vectors of an embedding before them."""
        n, ours, theirs, vectors = draw(st.integers(1, 6)), [], [], draw(st.none() | st.integers(1, 4))
        if vectors is not None:
            ours += [nn.Embedding(vectors, n, dtype="float64")]
            theirs += [torch.nn.Embedding(vectors, n)]
        for _ in range(draw(st.integers(1, 4))):
            m, bias, name = draw(st.integers(1, 6)), draw(st.booleans()), draw(st.sampled_from(sorted(ACTIVATIONS)))
            one, other = ACTIVATIONS[name]
            theirs += [torch.nn.Linear(n, m, bias), other()]
            if draw(st.booleans()):
                ours += [nn.Linear(n, m, bias, activation=name, dtype="float64")]
            else:
                ours += [nn.Linear(n, m, bias, dtype="float64"), one()]
            if draw(st.booleans()):
                affine = draw(st.booleans())
                ours += [nn.LayerNorm(m, elementwise_affine=affine, dtype="float64"), nn.Identity()]
                theirs += [torch.nn.LayerNorm(m, elementwise_affine=affine), torch.nn.Identity()]
            if draw(st.booleans()):
                ours += [nn.RMSNorm(m, dtype="float64")]
                theirs += [torch.nn.RMSNorm(m)]
            if vectors is None and draw(st.booleans()):
                affine = draw(st.booleans())
                ours += [nn.BatchNorm1d(m, affine=affine, dtype="float64")]
                theirs += [torch.nn.BatchNorm1d(m, affine=affine)]
            if draw(st.booleans()):
                slopes = draw(st.sampled_from([1, m if vectors is None else 2]))  # of an embedding, axis 1 is 2 long
                ours += [nn.PReLU(slopes, dtype="float64")]
                theirs += [torch.nn.PReLU(slopes, init=0.1)]
            if draw(st.booleans()):
                ours += [nn.Dropout(0.5), nn.Flatten(-1)]
                theirs += [torch.nn.Dropout(0.5), torch.nn.Flatten(-1)]
            n = m
        return ours, theirs, vectors

    @random_examples(30)
    @given(st.data(), st.integers(0, 2**31))
    def check(data: Any, seed: int) -> None:
        torch.manual_seed(seed)
        ours, theirs, vectors = layers(data.draw)
        for parameter in nn.Sequential(*ours).parameters():  # also the weights of LayerNorm, which are 1 at first
            nn.init.normal_(parameter)
        rng = np.random.default_rng(seed)
        n = ours[0].in_features if vectors is None else vectors
        x = rng.standard_normal((5, n)) if vectors is None else rng.integers(0, n, (5, 2))

        cut = data.draw(st.integers(0, len(theirs)))
        nested = torch.nn.Sequential(torch.nn.Sequential(*theirs[:cut]), *theirs[cut:]).double()
        nested(torch.tensor(x))  # in training mode, which moves running statistics
        model = nn.Sequential(*ours).load(to_file(nested, path), names="torch")
        assert_equal_logits(model, nested, x)

        for parameter in model.parameters():
            nn.init.normal_(parameter)
        model.train()(gf.tensor(x))
        model.save(path, names="torch")
        assert_equal_logits(from_file(torch.nn.Sequential(*theirs).double(), path), model, x)
        nn.Sequential(nn.Sequential(model, nn.Tanh()), nn.Linear(1, 1)).save(path, names="torch")
        nested = torch.nn.Sequential(
            torch.nn.Sequential(torch.nn.Sequential(*theirs), torch.nn.Tanh()), torch.nn.Linear(1, 1)
        )
        from_file(nested.double(), path)
        assert_equal_logits(model, nested[0][0], x)

    check()


def test_attributes_are_matched_by_name_and_what_is_in_them_by_position(tmp_path: Path) -> None:
    class Theirs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(5, 2)
            self.body = torch_mlp([4, 8, 5], dropout=0.5)
            self.blocks = torch.nn.ModuleList(torch_mlp([4, 3, 4]) for _ in range(11))
            self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0, 4.0]))
            self.register_buffer("count", torch.tensor(7))

    class Ours(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", gf.tensor(0, dtype="int64"))
            self.body = nn.MLP([4, 8, 5])
            self.blocks = nn.ModuleList(nn.MLP([4, 3, 4]) for _ in range(11))
            self.register_buffer("scale", gf.ones(4))
            self.head = nn.Linear(5, 2)

    theirs, path = Theirs(), tmp_path / "weights.safetensors"
    ours = Ours().load(to_file(theirs, path), names="torch")
    assert ours.count.item() == 7
    assert ours.scale.tolist() == [1.0, 2.0, 3.0, 4.0]
    for name, there in {
        "head.weight": "head.weight", "body.1.weight": "body.3.weight", "blocks.10.1.bias": "blocks.10.2.bias",
        "blocks.2.0.weight": "blocks.2.0.weight",
    }.items():  # fmt: skip
        assert ours.state_dict()[name].tolist() == theirs.state_dict()[there].tolist()
    ours.body = nn.MLP([4, 8, 5], dropout=0.5)
    ours.save(path, names="torch")
    back = from_file(Theirs(), path).state_dict()
    assert {k: v.tolist() for k, v in back.items() if k[:4] != "body"} == {
        k: v.tolist() for k, v in theirs.state_dict().items() if k[:4] != "body"
    }


def test_a_shared_parameter_has_each_of_its_names_in_the_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3, activation="tanh"), nn.Linear(3, 3, activation="tanh"))
    model[1].weight = model[0].weight
    model.save(tmp_path / "w", names="torch")
    assert list(files.load_file(tmp_path / "w")) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert model.load(tmp_path / "w", names="torch")[1].weight is model[0].weight

    theirs = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3), torch.nn.Tanh())
    theirs[2].weight = theirs[0].weight
    files.save_model(theirs, tmp_path / "w")  # which writes the weight once
    x = np.ones((1, 3), "float32")
    assert np.allclose(logits(model.load(tmp_path / "w", names="torch"), x), logits(theirs, x), rtol=0, atol=1e-6)
    with pytest.raises(nn.StateError, match=r"> -  +1\.weight"):
        nn.MLP([3, 3, 3]).load(tmp_path / "w", names="torch")


def test_without_names_a_model_comes_back_with_its_own(tmp_path: Path) -> None:
    model = nn.MLP([4, 8, 3], dropout=0.5)
    model.save(tmp_path / "weights")
    assert list(gf.load(tmp_path / "weights")) == list(model.state_dict())
    other = nn.MLP([4, 8, 3])
    assert other.load(tmp_path / "weights") is other
    assert equal(other.state_dict(), model.state_dict())
    assert nn.MLP([4, 8, 3]).load(tmp_path / "weights", names="torch").sizes == (4, 8, 3)  # also a file of gradflow
    for call in (model.save, model.load):
        with pytest.raises(ValueError, match="names is None, for the names of state_dict, or \"torch\"; got 'keras'"):
            call(tmp_path / "weights", names="keras")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_the_model_keeps_its_dtypes(dtype: str, tmp_path: Path) -> None:
    theirs = torch_mlp([4, 8, 3]).to(getattr(torch, dtype))
    ours = nn.MLP([4, 8, 3]).load(to_file(theirs, tmp_path / "w"), names="torch")
    assert {p.dtype for p in ours.parameters()} == {gf.float32}
    assert ours[1].weight.tolist() == theirs[2].weight.float().tolist()  # exact, or rounded to nearest
    half = nn.MLP([4, 8, 3], dtype="float16").load(to_file(torch_mlp([4, 8, 3]), tmp_path / "w"), names="torch")
    half.save(tmp_path / "w", names="torch")
    assert {x.dtype for x in files.load_file(tmp_path / "w").values()} == {torch.float16}


def test_the_model_stays_on_its_device(tmp_path: Path) -> None:
    theirs = torch_mlp([4, 8, 3])
    ours = nn.MLP([4, 8, 3], device="fake").load(to_file(theirs, tmp_path / "w"), names="torch")
    assert {p.device for p in ours.parameters()} == {gf.Device("fake")}
    assert ours[0].weight.tolist() == theirs[0].weight.tolist()


# ---------------------------------------------------------------------- refusals

MISFITS: dict[str, tuple[Callable[[], nn.Module], type, list[str]]] = {
    "another width": (
        lambda: nn.MLP([4, 9, 3]), ValueError, ["> 0.weight (8, 4) 0.weight (9, 4)", "3.bias (3,) 1.bias (3,)"],
    ),
    "a layer less": (
        lambda: nn.MLP([4, 8]), nn.StateError, ["0.bias (8,) 0.bias (8,)", "> 3.weight (3, 8) -", "> 3.bias (3,) -"],
    ),
    "a layer more": (
        lambda: nn.MLP([4, 8, 3, 2]), nn.StateError, ["3.bias (3,) 1.bias (3,)", "> - 2.weight (2, 3)"],
    ),
    "no bias": (
        lambda: nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 3)), nn.StateError,
        ["> 0.bias (8,) -", "3.weight (3, 8) 1.weight (3, 8)"],
    ),
    "a normalization in place of a layer": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8)), ValueError, ["> 3.weight (3, 8) 1.weight (8,)"],
    ),
    "attributes in place of positions": (
        lambda: functional(), nn.StateError, ["> 0.weight (8, 4) -", "> - first.weight (8, 4)"],
    ),
}  # fmt: skip


def functional() -> nn.Module:
    model = nn.Module()
    model.first, model.second = nn.Linear(4, 8), nn.Linear(8, 3)
    return model


@pytest.mark.parametrize("case", MISFITS)
def test_both_sides_are_shown_where_they_do_not_fit_and_nothing_changes(case: str, tmp_path: Path) -> None:
    make, error, lines = MISFITS[case]
    model, path = make(), to_file(torch_mlp([4, 8, 3], dropout=0.5), tmp_path / "weights.safetensors")
    before = model.state_dict()
    with pytest.raises(error) as raised:
        model.load(path, names="torch")
    text = str(raised.value)
    assert text.startswith(f"{path} does not fit this {type(model).__name__}; tensors of the file, and of the model:\n")
    shown = [line.split() for line in text.splitlines()]
    assert [line for line in lines if line.split() not in shown] == []
    assert equal(model.state_dict(), before)


def test_names_that_are_not_those_of_the_model_may_be_those_of_pytorch(tmp_path: Path) -> None:
    path = to_file(torch_mlp([4, 8, 3]), tmp_path / "w")
    with pytest.raises(
        nn.StateError, match=r'missing: 1\.weight.*; if the file has the names of PyTorch, pass names="torch"'
    ):
        nn.MLP([4, 8, 3]).load(path)


def test_integers_in_place_of_weights_are_refused(tmp_path: Path) -> None:
    files.save_file({"0.weight": torch.ones(3, 2), "0.bias": torch.ones(3, dtype=torch.int64)}, tmp_path / "w")
    model = nn.Sequential(nn.Linear(2, 3))
    before = model.state_dict()
    with pytest.raises(TypeError, match=r"0\.bias is float32; got int64"):
        model.load(tmp_path / "w", names="torch")
    assert equal(model.state_dict(), before)


def test_a_checkpoint_is_not_taken_for_weights(tmp_path: Path) -> None:
    gf.save(tmp_path / "w", {"model": nn.Linear(2, 2).state_dict(), "epoch": 3})
    with pytest.raises(ValueError, match="does not hold the tensors of a state dict by name: read it with"):
        nn.Linear(2, 2).load(tmp_path / "w", names="torch")


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_save_are_refused_with_two_lines_that_convert_them(zipped: bool, tmp_path: Path) -> None:
    theirs, path = torch_mlp([4, 8, 3]), tmp_path / "the model's.pt"
    torch.save(theirs.state_dict(), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(gf.InvalidFileError) as raised:
        nn.MLP([4, 8, 3]).load(path, names="torch")
    first, *lines = str(raised.value).splitlines()
    assert first.startswith(f"{path} is not a whole safetensors file, but ")
    assert len(lines) == 2
    exec("\n".join(line.strip() for line in lines))
    ours = nn.MLP([4, 8, 3]).load(tmp_path / "the model's.safetensors", names="torch")
    assert ours[1].weight.tolist() == theirs[2].weight.tolist()


# ---------------------------------------------------------------------- GELU


@pytest.mark.filterwarnings("default:this model has the tanh form of GELU")
def test_the_tanh_form_of_gelu_warns(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = to_file(torch_mlp([4, 8, 3]), tmp_path / "w")
    for activation in ("relu", "gelu_exact"):
        nn.MLP([4, 8, 3], activation).load(path, names="torch")
    nn.Sequential(nn.Linear(4, 8), nn.GELU(approximate="none"), nn.Linear(8, 3)).load(path, names="torch")
    assert not recwarn.list
    gelus = (
        nn.MLP([4, 8, 3], "gelu"),
        nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)),
        nn.Sequential(nn.Linear(4, 8, activation="gelu"), nn.Linear(8, 3)),
    )
    for model in gelus:
        with pytest.warns(UserWarning, match="the tanh form of GELU") as warned:
            model.load(path, names="torch")
        assert [w.filename for w in warned] == [__file__]
    model.save(path)
    recwarn.clear()
    model.load(path)  # of gradflow itself
    assert not recwarn.list
