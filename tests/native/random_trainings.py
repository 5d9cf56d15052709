"""Random trainings, which captured steps must do with the bits of plain ones.

`python tests/native/random_trainings.py 2000` draws 2,000 and stops at the first that differs, which it makes as simple
as it can; `--seed S` is the first seed.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gradflow_numpy import FastNumpyBackend
from recipes import RATES, Recipe, drawn, simpler

import gradflow as gf
from gradflow import nn, optim
from gradflow.random import default_generator


class Training:
    """The training of a recipe; `through` makes the steps that it calls of plain ones."""

    def __init__(self, recipe: Recipe, through: Callable[[Any], Any]) -> None:
        self.recipe, self.captured = recipe, through is gf.capture
        self.draw = random.Random(recipe.seed)
        self.numbers = np.random.default_rng(recipe.seed)
        # the bits of native products do not depend on the number of threads, those of BLAS do
        own = isinstance(gf.get_backend("cpu"), FastNumpyBackend) and self.captured
        self.draw_threads = random.Random(f"{recipe.seed} {own}")
        self.change_threads()
        gf.manual_seed(recipe.seed)
        self.model = self._model()
        parameters = list(self.model.parameters())
        for p in parameters[1:]:
            if self.draw.random() < recipe.frozen:
                p.requires_grad_(False)
        lr = 0.003 if recipe.optimizer == "Lion" else 0.02
        rate = RATES[recipe.rate](lr)
        groups = [
            {"params": parameters[k :: recipe.groups]} | ({"lr": lr / 2, "weight_decay": 0.05} if k else {})
            for k in range(min(recipe.groups, len(parameters)))
        ]
        self.optimizer = getattr(optim, recipe.optimizer)(groups, lr=rate, **dict(recipe.options))
        self.loss = self._loss()
        self.steps = {name: through(getattr(self, name)) for name in ("train", "add", "update")}
        self.replays = 0

    def _model(self) -> nn.Module:
        recipe = self.recipe
        if recipe.mlp:
            linear = [x for x in recipe.layers if x[0] == "linear"]
            sizes = [recipe.inputs, *[x[1] for x in linear], recipe.outputs]
            dropout = next((x[1] for x in recipe.layers if x[0] == "dropout"), 0.0)
            return nn.MLP(sizes, next((x[3] for x in linear if x[3]), "relu"), dropout)
        modules: list[nn.Module] = []
        width, last = recipe.inputs, None
        for kind, *given in recipe.layers:
            if kind == "linear":
                last = nn.Linear(width, given[0], given[1], given[2])
                modules.append(last)
                width = given[0]
            elif kind == "again":
                if last is None or last.in_features != last.out_features or last.out_features != width:
                    last = nn.Linear(width, width)
                    modules.append(last)
                    tied = nn.Linear(width, width)
                    tied.weight = last.weight
                    modules.append(tied)
                else:
                    modules.append(last)
            elif kind == "norm":
                modules.append(getattr(nn, given[0])(width))
            elif kind == "dropout":
                modules.append(nn.Dropout(given[0]))
            else:
                modules.append(getattr(nn, given[0])(**dict(given[1])))
        return nn.Sequential(*modules, nn.Linear(width, recipe.outputs))

    def _loss(self) -> Callable[[gf.Tensor, gf.Tensor], gf.Tensor]:
        kind, reduction, classes = self.recipe.loss, self.recipe.reduction, self.recipe.outputs
        weight = gf.tensor(self.numbers.uniform(0.5, 2.0, classes).astype(self.recipe.dtype))
        if kind in ("labels", "smoothed", "ignored", "weighted", "probabilities"):
            return nn.CrossEntropyLoss(
                weight if kind == "weighted" else None,
                reduction,
                0.1 if kind == "smoothed" else 0.0,
                0 if kind == "ignored" else -100,
            )
        if kind == "nll":
            nll = nn.NLLLoss(weight, reduction)
            return lambda y, t: nll(gf.log_softmax(y), t)
        if kind == "bce":
            bce = nn.BCELoss(None, reduction)
            return lambda y, t: bce(gf.sigmoid(y), t)
        if kind == "bce_logits":
            return nn.BCEWithLogitsLoss(None, reduction, weight)
        if kind == "kl":
            kl = nn.KLDivLoss(reduction)
            return lambda y, t: kl(gf.log_softmax(y), t)
        if kind == "gaussian":
            gaussian = nn.GaussianNLLLoss(full=True, reduction=reduction)
            return lambda y, t: gaussian(y, t, gf.softplus(y) + 0.1)
        names = {"mse": nn.MSELoss, "l1": nn.L1Loss, "huber": nn.HuberLoss, "smooth_l1": nn.SmoothL1Loss}
        return names[kind](reduction)

    # ------------------------------------------------------------------ steps

    def clear(self) -> None:
        if self.recipe.zero == "model":
            self.model.zero_grad()
        else:
            self.optimizer.zero_grad(self.recipe.zero != "zeros")

    def add(self, x: gf.Tensor, t: gf.Tensor) -> gf.Tensor:
        loss = self.loss(self.model(x), t)
        loss = loss.mean() if loss.shape else loss
        (loss / self.recipe.accumulate if self.recipe.accumulate > 1 else loss).backward()
        return loss

    def update(self, x: gf.Tensor, t: gf.Tensor) -> Any:
        found = [self.add(x, t)]
        kind, limit = self.recipe.clip or (None, None)
        if kind == "norm":
            found.append(optim.clip_grad_norm_(self.model.parameters(), limit))
        elif kind == "value":
            optim.clip_grad_value_(self.model.parameters(), limit)
        self.optimizer.step()
        if self.recipe.zero == "after":
            self.clear()
        return found

    def train(self, *batches: gf.Tensor) -> Any:
        if self.recipe.zero != "after":
            self.clear()
        for k in range(0, len(batches) - 2, 2):
            self.add(*batches[k : k + 2])
        return self.update(*batches[-2:])

    # ------------------------------------------------------------------ what happens between them

    def batch(self, rows: int) -> tuple[gf.Tensor, gf.Tensor]:
        recipe, numbers = self.recipe, self.numbers
        x = numbers.normal(size=(rows + 3, recipe.inputs)).astype(recipe.dtype)
        start = self.draw.randrange(3)
        if recipe.strided and self.draw.random() < 0.5:
            inputs = gf.tensor(np.ascontiguousarray(x.T)).T[start : start + rows]
        else:
            inputs = gf.tensor(x)[start : start + rows]
        if recipe.loss in ("labels", "smoothed", "ignored", "weighted", "nll"):
            return inputs, gf.tensor(numbers.integers(0, recipe.outputs, rows))
        t = numbers.uniform(0.0, 1.0, size=(rows, recipe.outputs))
        if recipe.loss in ("probabilities", "kl"):
            t /= t.sum(1, keepdims=True)
        return inputs, gf.tensor(t.astype(recipe.dtype))

    def change_threads(self) -> None:
        gf.set_num_threads(self.draw_threads.choice([1, 2, 3]))

    def happen(self, event: str) -> None:
        draw, group = self.draw, self.draw.choice(self.optimizer.param_groups)
        if event == "rate":
            group["lr"] = RATES[draw.choice([*RATES])](0.01)
        elif event == "weight_decay":
            group["weight_decay"] = draw.choice([0.0, 0.02])
        elif event == "momentum":
            name = "betas" if "betas" in group else "momentum"
            if name in group and not group.get("nesterov"):
                group[name] = draw.choice([0.0, 0.8]) if name == "momentum" else (draw.choice([0.8, 0.9]), 0.99)
        elif event == "mode":
            self.model.train(not self.model.training)
        elif event == "freeze":
            p = draw.choice(list(self.model.parameters())[:-1] or [*self.model.parameters()])
            p.requires_grad_(not p.requires_grad or len([*self.model.parameters()]) == 1)
        elif event == "threads":
            self.change_threads()
        elif event == "weights":
            state = self.model.state_dict().items()
            self.model.load_state_dict({name: 0.9 * x if x.dtype.is_floating else x for name, x in state})
        elif event == "clear":
            self.optimizer.zero_grad(draw.random() < 0.5)
        else:
            gf.random.uniform(3)

    def calls(self, batches: list[Any]) -> Iterator[Any]:
        """The name and the arguments of the steps to call."""
        if not self.recipe.apart:
            yield "train", *[x for batch in batches for x in batch]
            return
        if self.recipe.zero != "after":
            self.clear()
        for i, batch in enumerate(batches, 1):
            yield "update" if i == len(batches) else "add", *batch

    def run(self) -> Iterator[dict[str, Any]]:
        """The bits of all that a step computes and changes, after each."""
        recipe = self.recipe
        for rows, event in recipe.calls:
            if event is not None:
                self.happen(event)
            batches = [self.batch(rows) for _ in range(recipe.accumulate)]
            results: list[Any] = []
            try:
                for name, *given in self.calls(batches):
                    results.append(bits(self.steps[name](*given)))
                    if self.captured:
                        self.replays += self.steps[name].status.startswith("replaying")
            except (RuntimeError, ValueError) as error:  # such as batch normalization of one row, or nothing to train
                results.append(str(error))
            yield {
                "results": results,
                "gradients": bits([p.grad for p in self.model.parameters()]),
                "model": bits(self.model.state_dict()),
                "optimizer": bits(self.optimizer.state_dict()),
                "generator": default_generator.state_dict(),
            }


def bits(tree: Any) -> Any:
    """A tree with the bytes of tensors; of NaN, there is one."""
    if isinstance(tree, dict):
        return {key: bits(x) for key, x in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [bits(x) for x in tree]
    if not isinstance(tree, gf.Tensor):
        return tree
    x = tree.detach().numpy()
    return np.where(np.isnan(x), np.nan, x).tobytes()  # whose sign depends on the order of operands


def first_difference(a: Any, b: Any, place: str = "") -> str | None:
    """Where two trees of bits differ, and by how much; None if they do not."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        found = [first_difference(a[k], b[k], f"{place}[{k!r}]") for k in a]
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        found = [first_difference(x, y, f"{place}[{i}]") for i, (x, y) in enumerate(zip(a, b, strict=True))]
    elif a == b:
        return None
    else:
        return f"{place}: {_shown(a)} plain, {_shown(b)} captured"
    return next((x for x in found if x is not None), None)


def _shown(x: Any) -> str:
    return f"{np.frombuffer(x, np.uint8)[:16]} ({len(x)} bytes)" if isinstance(x, bytes) else repr(x)


def difference(recipe: Recipe) -> tuple[str | None, int]:
    """Where the captured training differs from the plain one (None: nowhere), and how many of its calls replayed."""
    threads = gf.get_num_threads()
    try:
        with gf.use_dtype(recipe.dtype), warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)  # of numbers that overflow
            plain = list(Training(recipe, lambda step: step).run())
            training = Training(recipe, gf.capture)
            for i, found in enumerate(training.run()):
                place = first_difference(plain[i], found)
                if place is not None:
                    return f"step {i}: {place}", training.replays
            return None, training.replays
    finally:
        gf.set_num_threads(threads)


def shrunk(recipe: Recipe) -> Recipe:
    """A recipe, as simple as can be found, whose trainings differ like those of this one."""
    for each in simpler(recipe):
        if each != recipe:
            try:
                differs = difference(each)[0] is not None
            except Exception:
                continue
            if differs:
                return shrunk(each)
    return recipe


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("number", type=int, help="how many trainings")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--steps", type=int, default=14, help="the steps of each (default 14)")
    arguments = parser.parse_args()
    steps = replays = 0
    begin = time.perf_counter()
    for seed in range(arguments.seed, arguments.seed + arguments.number):
        recipe = drawn(seed, arguments.steps)
        try:
            found, replayed = difference(recipe)
        except Exception:
            print(f"seed {seed}: {recipe}", file=sys.stderr)
            raise
        if found is not None:
            print(f"seed {seed} differs: {found}\n{recipe}", flush=True)
            small = shrunk(recipe)
            print(f"so does, in {difference(small)[0]}:\n{small}")
            return 1
        steps, replays = steps + len(recipe.calls), replays + replayed
    seconds = time.perf_counter() - begin
    print(
        f"{arguments.number} trainings of {steps} steps are equal to the bit, {replays} calls replayed; {seconds:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
