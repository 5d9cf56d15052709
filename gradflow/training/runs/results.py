"""What a run reached: its figures on samples that it was not trained on, in memory, in its config and in its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from gradflow.data import Part
from gradflow.tables import Columns
from gradflow.training.epoch import Epoch, best_of
from gradflow.training.metrics import figures_of
from gradflow.training.report import ReportData, TableFacts
from gradflow.training.runs.importance import amount, dependence, importance
from gradflow.training.runs.members import Members
from gradflow.training.runs.predictor import CLASS_FIGURES, VALUE_FIGURES, Predictor
from gradflow.training.runs.preparation import Plan
from gradflow.training.runs.settings import Settings

Array = npt.NDArray[Any]

_MOST_SHOWN = 5
"""For how many columns the report shows how predictions depend on them."""


@dataclass(frozen=True)
class Result:
    """The result of a run.

    settings: as they were used. folder: where the run is saved. histories: the epochs of each model of the ensemble.
    predictor: the best weights of each, ready to predict.
    figures: what it reached, by name, on the samples `assessed`: "test", or "validation" if none are held out for
        testing; "" and {} if there are neither. members: the same of each model of an ensemble.
    seconds: how long training took. stopped: why it ended before its last epoch, "" if it did not; `failed`: whether
        that was an error. omitted: why a picture or the report is missing, "" if none is.

    >>> import tempfile
    >>> import numpy as np
    >>> from gradflow.training import Settings, train
    >>> x = np.random.default_rng(0).normal(size=(100, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/data.npz", X=x, y=x[:, 0] + x[:, 1])
    ...     result = train(Settings(f"{folder}/data.npz", epochs=2, hidden=(), ensemble=2), out=f"{folder}/run")
    >>> [len(history) for history in result.histories], sorted(result.figures), len(result.members)
    ([2, 2], ['mae', 'r2', 'rmse'], 2)
    """

    settings: Settings
    folder: Path
    histories: list[list[Epoch]]
    predictor: Predictor
    assessed: str
    figures: dict[str, float]
    members: list[dict[str, float]]
    seconds: float
    stopped: str
    failed: bool
    omitted: str = ""

    @property
    def best(self) -> list[Epoch]:
        """The epoch of each model whose weights are kept: the last one if none was the best."""
        return [best_of(history) or history[-1] for history in self.histories]


def result_of(
    members: Members, folder: Path, seconds: float, stopped: str, failed: bool
) -> tuple[Result, Array | None]:
    """Return the result of a run, and the outputs that its figures are computed from: probabilities or values."""
    plan, weights = members.plan, members.weights()
    predictor = members.predictor(weights)
    figures, outputs = _assessed(plan, predictor)
    alone = [_assessed(plan, members.predictor([each]))[0] for each in weights] if len(weights) > 1 else []
    predictor.score.update({f"{assessed(plan)}_{name}": value for name, value in figures.items()})
    settings = plan.settings
    result = Result(
        settings, folder, members.histories, predictor, assessed(plan), figures, alone, seconds, stopped, failed
    )
    return result, outputs


def assessed(plan: Plan) -> str:
    """Return which samples the figures of a run are from: "test", "validation" or ""."""
    return "test" if plan.split.test else "validation" if plan.split.validation else ""


def _assessed(plan: Plan, predictor: Predictor) -> tuple[dict[str, float], Array | None]:
    part = plan.split.test or plan.split.validation
    if part is None:
        return {}, None
    if plan.dataset.is_classification:
        outputs = predictor.predict_proba(part.raw_inputs)
        return figures_of(CLASS_FIGURES, "classes", outputs, part.targets), outputs
    outputs = predictor.predict(part.raw_inputs).reshape(len(part), -1)
    return figures_of(VALUE_FIGURES, "values", outputs, part.raw_targets), outputs


def describe_figure(name: str, value: float) -> str:
    """Return a figure as text: "accuracy 97.22 %", "R² 0.4412"."""
    if name == "accuracy":
        return f"{name} {100 * value:.2f} %"
    return f"{'R²' if name == 'r2' else name} {value:.4f}"


def describe(result: Result) -> str:
    """Return the main figure of a result as text, and on which samples; "" if there is none."""
    name = next(iter(result.figures), "")  # the accuracy, or R²
    if not name:
        return ""
    score = f"{result.assessed} {describe_figure(name, result.figures[name])}"
    if not result.members:
        return score
    low, high = (limit(f[name] for f in result.members) for limit in (min, max))
    ends = " to ".join(describe_figure(name, value).split(" ", 1)[1] for value in (low, high))
    return f"{score} of {len(result.members)} models ({ends} each alone)"


def result_table(result: Result) -> dict[str, Any]:
    """Return the table [result] of a config.toml: numbers, or lists of one for each model of an ensemble."""
    table: dict[str, Any] = {}
    if result.histories:
        table["epochs"] = _each([len(history) for history in result.histories])
        table["best_epoch"] = _each([epoch.epoch for epoch in result.best])
        table["train_loss"] = _each([epoch.train_loss for epoch in result.best])
        if result.best[0].validation_loss is not None:
            table["validation_loss"] = _each([epoch.validation_loss for epoch in result.best])
            for name in result.best[0].validation_metrics:
                table[f"validation_{name}"] = _each([epoch.validation_metrics[name] for epoch in result.best])
    if result.assessed == "test":
        table |= {f"test_{name}": value for name, value in result.figures.items()}
        for name in result.figures if result.members else ():
            table[f"members_test_{name}"] = [figures[name] for figures in result.members]
    if result.stopped:
        table["stopped"] = result.stopped
    return table


def _table_facts(members: Members, result: Result, part: Part | None) -> TableFacts | None:
    """Return what the report tells of a table, None for arrays. part: what is assessed."""
    columns = members.plan.split.input_scale
    if not isinstance(columns, Columns):
        return None
    parameters = sum(p.size for p in members.trainer.model.parameters())
    facts = TableFacts(columns.target, columns.notes[0], columns.describe(), parameters)
    if part is None:
        return facts
    rows, times = amount(result.predictor, len(part))
    if not times:
        return facts
    table = part.raw_inputs.take(rows)
    targets = part.targets[rows] if members.plan.dataset.is_classification else part.raw_targets[rows]
    ranked = importance(result.predictor, table, targets, times)
    tried = (dependence(result.predictor, table, each.column) for each in ranked[:_MOST_SHOWN])
    return replace(facts, rows=len(rows), importance=ranked, dependence=[each for each in tried if each is not None])


def _each(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def report_data(
    members: Members, result: Result, outputs: Array | None, environment: Mapping[str, Any], command: str
) -> ReportData:
    """Return what the report tells about a run. outputs: those of `result_of`."""
    plan = members.plan
    data, split = plan.dataset, plan.split
    part: Part | None = split.test or split.validation
    return ReportData(
        name=result.folder.name,
        dataset=data.name,
        settings=plan.settings.to_dict(),
        environment={**environment, "data": plan.data_hash},
        sizes=plan.sizes,
        counts=(len(split.train), len(split.validation or ()), len(split.test or ())),
        histories=result.histories,
        snapshots=members.snapshots,
        assessed="test" if split.test else "validation",
        inputs=None if part is None or isinstance(split.input_scale, Columns) else part.raw_inputs,
        targets=None if part is None else part.targets if data.is_classification else part.raw_targets,
        outputs=outputs,
        rows=None if part is None else part.indices,
        features=result.predictor.features,
        means=getattr(split.input_scale, "mean", None),
        deviations=getattr(split.input_scale, "deviation", None),
        image_shape=data.image_shape,
        table=_table_facts(members, result, part),
        classes=data.classes,
        columns=data.columns,
        seconds=result.seconds,
        stopped=result.stopped,
        command=command,
    )
