"""The page of a report: its sections, its style, its head."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from importlib.resources import files

import numpy as np

from gradflow.training.curves import Panel, panels
from gradflow.training.layers import Snapshot
from gradflow.training.report.data import ReportData
from gradflow.training.report.figures import line_chart
from gradflow.training.report.layers import layers_section
from gradflow.training.report.markup import facts, name, text
from gradflow.training.report.numbers import Figure
from gradflow.training.report.results import (
    classification_sections,
    figures_of,
    figures_section,
    regression_sections,
)
from gradflow.training.report.story import lead, notices, story
from gradflow.training.report.tables import table_sections

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_MOST_TOLD = 10  # members of an ensemble


def report_html(data: ReportData) -> str:
    """Return the page. Equal data give equal text: there is no date in it.

    It loads nothing and has no script; pictures are in the text. It follows the reader's theme, light or dark.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # of values near the limit of float64
        finite = data.outputs is not None and len(data.outputs) > 0 and bool(np.isfinite(data.outputs).all())
        figures = figures_of(data) if finite else []
        sections = list(_sections(data, figures))
    links = "".join(f'<li><a href="#{key}">{heading}</a></li>' for key, heading, _ in sections)
    header = (
        f'<p class="kind">Report of a training run</p>\n<h1>{name(data.name)}</h1>\n'
        f'<p class="lead">{lead(data, figures)}</p>\n{"".join(notices(data, finite))}\n'
        f'<nav aria-label="sections"><ul>{links}</ul></nav>'
    )
    body = "\n".join(
        f'<section aria-labelledby="{key}">\n<h2 id="{key}">{heading}</h2>\n{content}\n</section>'
        for key, heading, content in sections
    )
    return _page(f"{text(data.name)}: report of a training run", header, body)


def layers_html(snapshots: Sequence[Snapshot]) -> str:
    """Return a page with the figures on the layers alone, like that of a report. snapshots: at least one."""
    header = "<h1>Inside the network</h1>"
    return _page("Inside the network", header, layers_section(snapshots))


def _page(title: str, header: str, body: str) -> str:
    style = (files("gradflow.training.report") / "report.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header>\n{header}\n</header>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _sections(data: ReportData, figures: Sequence[Figure]) -> Iterator[tuple[str, str, str]]:
    """Yield the sections, each as (identifier, heading, markup)."""
    if figures:
        yield "figures", f"Figures on the {data.assessed} samples", figures_section(data, figures)
    if data.table is not None:
        yield from table_sections(data, data.table)
    yield "training", "Data and training", story(data)
    if any(data.histories):
        yield "curves", "Curves", _curves(data)
    if data.snapshots:
        yield "layers", "Inside the network", _layers(data)
    if figures:
        yield from classification_sections(data) if data.classes else regression_sections(data)
    yield "repeat", "Environment and how to repeat it", _repeat(data)


def _curves(data: ReportData) -> str:
    """Return a figure for the loss and for each metric, with one key for all."""
    shown = panels([h for h in data.histories if h][:_MOST_TOLD])
    charts = "".join(f"<figure><h3>{text(_title(panel))}</h3>{line_chart(panel)}</figure>" for panel in shown)
    line = '<svg viewBox="0 0 28 10" aria-hidden="true"><path class="curve {0}" d="M0 5H28"/></svg>'
    key = [f"{line.format('training')}training"]
    if any(math.isfinite(v) for c in shown[0].curves for v in c.validation):
        key.append(f"{line.format('validation')}validation")
    if any(c.best is not None for c in shown[0].curves):
        circle = '<svg viewBox="0 0 28 10" aria-hidden="true"><circle class="best" cx="14" cy="5" r="4"/></svg>'
        key.append(f"{circle}best epoch")
    items = "".join(f"<li>{item}</li>" for item in key)
    notes = []
    if len(data.histories) > 1:
        of = (
            f"the first {_MOST_TOLD} of {len(data.histories)} members"
            if len(data.histories) > _MOST_TOLD
            else "each member"
        )
        notes.append(f"There is one line for {of} of the ensemble.")
    notes.append("Training figures are means over an epoch while the weights change, with dropout where there is any.")
    return f'<ul class="key">{items}</ul><div class="row">{charts}</div><p class="note">{" ".join(notes)}</p>'


def _layers(data: ReportData) -> str:
    """Return the figures on the layers of the first member."""
    seen, done = [s.epoch for s in data.snapshots], len(data.histories[0]) if data.histories else 0
    which = "each epoch" if len(seen) >= done else f"{len(seen)} of {done} epochs"
    of = " of the first member of the ensemble" if len(data.histories) > 1 else ""
    return layers_section(data.snapshots, f"Taken at the end of {which}{of}.")


def _title(panel: Panel) -> str:
    label = panel.label[:1].upper() + panel.label[1:]
    return f"{label}, logarithmic" if panel.log() else label


def _repeat(data: ReportData) -> str:
    command = ""
    if data.command:
        does = "starts the run again, from its first epoch to its last" if data.stopped else "repeats the run"
        command = (
            f"<p>This command {does}; its figures are equal to the last bit where the "
            "environment is the same.</p>"
            f"<pre><code>{text(data.command)}</code></pre>"
        )
    return (
        f'{command}<div class="row"><div><h3>Settings</h3>{facts("settings", data.settings.items())}</div>'
        f"<div><h3>Environment</h3>{facts('environment', data.environment.items())}</div></div>"
    )
