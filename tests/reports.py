"""Runs to report, and the parts of their pages, for the tests of reports."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import numpy as np

from gradflow.training.epoch import Epoch
from gradflow.training.layers import Snapshot, Spread, histograms
from gradflow.training.report import Dependence, Importance, ReportData, TableFacts

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "&amp; 'quoted' \x00\x1b[31m\n</table>",
    "محمد علي",
    "\u202etfel ot thgir",
    "👩‍👩‍👧‍👦",
    "nowhitespace" * 30,
    "\ud800",
)


def history(n: int = 12, validated: bool = True, metric: str = "accuracy") -> list[Epoch]:
    losses = [2.0 / i + 0.01 * i for i in range(1, n + 1)]
    best = losses.index(min(losses))
    return [
        Epoch(
            i + 1, 10 * i, 0.1, 0.8 * loss, {metric: 0.9 - loss / 4},
            loss if validated else None, {metric: 0.9 - loss / 3} if validated else {},
            max(0, i - best), 1.0, 1.0,
        )
        for i, loss in enumerate(losses)
    ]  # fmt: skip


def snapshots(
    epochs: Sequence[int] = (1, 2, 4, 8, 12), layers: int = 3, dead: bool = True, broken: bool = False
) -> list[Snapshot]:
    """What was watched of a perceptron whose gradients shrink; at the end, numbers are not finite if `broken`."""
    rng = np.random.default_rng(0)
    names = [f"{i}.{kind}" for i in range(layers) for kind in ("weight", "bias")]
    found = []
    for epoch in epochs:
        bad = broken and epoch == epochs[-1]

        def spreads(scale: float, bad: bool = bad) -> dict[str, Spread]:
            values = [(scale * rng.normal(size=500)).astype(np.float32) for _ in names]
            counts = histograms(np.concatenate(values) * (np.nan if bad else 1.0), [500] * len(names))
            return {n: Spread(np.nan if bad else scale, c) for n, c in zip(names, counts, strict=True)}

        found.append(
            Snapshot(
                epoch, 10 * epoch, 0.1, spreads(0.1), spreads(0.1**epoch),
                dict.fromkeys(names, np.nan if bad else 1e-3 / epoch),
                {str(i): i / layers for i in range(layers - 1)} if dead else {},
            )
        )  # fmt: skip
    return found


def probabilities(n: int, classes: int, seed: int = 0) -> tuple[Any, Any]:
    """Labels, and probabilities of a model that is often right."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(classes, size=n)
    powers = np.exp(2 * (rng.normal(size=(n, classes)) + 2 * np.eye(classes)[targets]))
    return targets, powers / powers.sum(axis=1, keepdims=True)


SETTINGS = {
    "dataset": "digits", "optimizer": "adamw", "lr": 0.002, "weight_decay": 0.01, "momentum": None, "batch_size": 64,
    "schedule": "cosine", "epochs": 12, "dropout": 0.2, "activation": "relu", "hidden": [32, 16], "seed": 0,
}  # fmt: skip


def classified(n: int = 300, k: int = 5, seed: int = 0, **other: Any) -> ReportData:
    targets, outputs = probabilities(n, k, seed)
    names = HOSTILE if k == len(HOSTILE) else [f"class {c}" for c in range(k)]
    inputs = np.random.default_rng(seed).normal(size=(n, 12)).astype(np.float32)
    given: dict[str, Any] = {
        "name": "digits-1", "dataset": "digits", "settings": SETTINGS, "environment": {"python": "3.11"},
        "sizes": (12, 32, 16, k), "counts": (1000, 200, n), "histories": [history()], "inputs": inputs,
        "targets": targets, "outputs": outputs, "rows": np.arange(n) + 7000, "means": inputs.mean(0),
        "deviations": inputs.std(0), "classes": names, "seconds": 4.2,
        "command": "gradflow train --config runs/digits-1",
    }  # fmt: skip
    return ReportData(**(given | other))


def measured(n: int = 200, columns: int = 1, columns_named: Sequence[str] = (), **other: Any) -> ReportData:
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(n, columns)) * 50 + 100
    given: dict[str, Any] = {
        "targets": targets, "outputs": targets + rng.normal(size=targets.shape) * 20, "classes": (),
        "sizes": (12, 32, columns), "histories": [history(metric="r2")], "columns": columns_named,
    }  # fmt: skip
    return classified(n, **(given | other))


def of_table(columns: Sequence[str], levels: Sequence[str], outputs: int = 2, shuffles: int = 5) -> TableFacts:
    """What is told of a table with these columns: the first is one of dates, the second of texts."""
    rng = np.random.default_rng(0)
    told = [
        {"column": c, "kind": "text", "treatment": "one-hot", "missing": "1,234", "values": f"9 levels: {c}, {c}, ..."}
        for c in columns
    ]
    importance = [Importance(c, rng.normal(3.0 / i, 0.2, shuffles)) for i, c in enumerate(columns, 1)]
    values = [np.linspace(17800.0, 18500.0, 21), levels, np.array([7.0]), *[np.linspace(-1e7, 2e7, 21)] * 2]
    dependence = [
        Dependence(
            c, v, rng.dirichlet(np.ones(outputs), len(v)) if outputs > 1 else rng.normal(size=(len(v), 1)), not i
        )
        for i, (c, v) in enumerate(zip(columns, values, strict=False))
    ]
    return TableFacts(HOSTILE[0], "one of the classes", told, 1234, 300, importance, dependence)


WIDE_NAMES = (
    "MARITAL_STATUS_OF_THE_HOUSEHOLD",
    "日本語のとても長いカテゴリ名ですよ本当に",
    "mmmmmmmmmmmmmmmmmmmmmmmmmmmmm",
    "W" * 40,
)


class Page(HTMLParser):
    """The parts of a page; raises where tags are not closed in the order in which they were opened."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.words: list[str] = []
        self.headings: list[int] = []
        self.declaration = ""
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = " ".join("".join(self.words).split())

    def handle_decl(self, decl: str) -> None:
        self.declaration = decl

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [key for key, _ in attrs]
        assert len(set(names)) == len(names)
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert "svg" in self.open

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "text"):
            self.words.append(data)
            if {"td", "th"} & set(self.open):
                self.tables[-1][-1][-1] += data

    def found(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def table(self, *head: str) -> list[list[str]]:
        """The rows of the table whose header is this."""
        (rows,) = [rows for first, *rows in self.tables if first == list(head)]
        return rows


def shown(share: float) -> str:
    return f"{100 * share:.1f}\u202f%"


ENSEMBLE = [history(12), history(9), history(12)]
DIVERGED = "the loss became nan in epoch 13; try a lower learning rate"
CASES = {
    "classes": classified(),
    "two classes": classified(k=2, n=40),
    "pictures": classified(image_shape=(3, 4)),
    "colours": classified(image_shape=(2, 2, 3)),
    "many classes": classified(n=1000, k=60),
    "hostile": classified(
        k=8, stopped=HOSTILE[1], name=HOSTILE[0], dataset=HOSTILE[1], environment={HOSTILE[0]: HOSTILE[6]},
        command=f"gradflow train '{HOSTILE[2]}'", features=[f"{HOSTILE[i % 8]} {i}" for i in range(12)],
    ),
    "hostile columns": measured(columns=3, columns_named=HOSTILE[:3]),
    "one sample": classified(n=1),
    "one epoch": classified(histories=[history(1)], snapshots=snapshots([1])),
    "watched": classified(snapshots=snapshots()),
    "watched and diverged": classified(snapshots=snapshots(broken=True, dead=False)),
    "watched and deep": classified(snapshots=snapshots(layers=30)),
    "no mistakes": classified(n=20, outputs=np.eye(5)[probabilities(20, 5)[0]]),
    "an ensemble": classified(histories=ENSEMBLE),
    "diverged": classified(stopped=DIVERGED),
    "diverged at once": classified(histories=[[]], stopped=DIVERGED, outputs=np.full((300, 5), np.nan)),
    "no test set": classified(assessed="validation", counts=(1000, 300, 0)),
    "nothing held out": classified(
        histories=[history(validated=False)], counts=(1000, 0, 0), inputs=None, targets=None, outputs=None, rows=None
    ),
    "values": measured(),
    "three values": measured(columns=3),
    "one value": measured(n=1),
    "huge values": measured(targets=1e300 * np.arange(200)[:, None], outputs=1e300 * np.arange(1, 201)[:, None]),
    "a table": classified(k=3, n=60, inputs=None, table=of_table(["day", "town", *WIDE_NAMES], WIDE_NAMES, 3)),
    "a hostile table": classified(k=2, n=60, inputs=None, table=of_table(HOSTILE, HOSTILE)),
    "a wide table": measured(
        inputs=None, table=of_table([f"the column with the number {i}" for i in range(300)], ["a", "b"], 1, shuffles=1)
    ),
    "equal values": measured(targets=np.ones((200, 1)), outputs=np.ones((200, 1))),
}  # fmt: skip
