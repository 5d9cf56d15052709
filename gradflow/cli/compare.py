"""`gradflow compare`: what differs between runs, in settings and in figures."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gradflow.cli.evaluate import finite
from gradflow.cli.options import add_json, check_out, write_out
from gradflow.cli.output import UsageError
from gradflow.text import printable

if TYPE_CHECKING:
    from gradflow.training.runs.compare import Record

_HELP = """\
Compare runs by their folders: print which settings, data and environment
differ, and the figures side by side, the best marked with *; none is marked
where runs are on different data, nor a loss with other class weights. With
--out, draw their curves in one picture.
"""
_EXAMPLES = """\
examples:
  gradflow compare runs/digits-1 runs/digits-2
  gradflow compare runs/digits-* --out curves.png
  gradflow compare runs/digits-1 runs/digits-2 --json

The picture replaces one that gradflow drew, and no other file. A run that is
not finished is compared by the figures of its best epoch so far.

exit status: 0 done; 1 the picture cannot be written; 2 invalid input;
130 Ctrl-C
"""
_WIDEST = 24  # characters of a value


def add_parser(commands: Any) -> None:
    """Add the command to the parser of the command line."""
    parser = commands.add_parser(
        "compare",
        help="what differs between runs",
        usage="gradflow compare FOLDER FOLDER ... [--out FILE.png] [--json]",
        description=_HELP,
        epilog=_EXAMPLES,
    )
    parser.set_defaults(run=run)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="the folders of two or more runs")
    parser.add_argument("--out", metavar="FILE", help="draw the curves of all runs in this PNG file")
    add_json(parser, "the tables")


def run(arguments: argparse.Namespace) -> int:
    """Compare runs, print what differs, and return the exit status."""
    from gradflow.training.runs import compare

    folders = arguments.folders
    if len(folders) < 2:
        raise UsageError(f"compare takes two or more runs; got {folders[0]}")
    for i, folder in enumerate(folders):
        if os.path.realpath(folder) in map(os.path.realpath, folders[:i]):
            raise UsageError(f"{folder} is given twice")
    if arguments.out is not None:
        check_out(arguments.out, lambda start: start.startswith(b"\x89PNG") and b"Matplotlib" in start)
    records = [compare.read_record(folder) for folder in folders]
    if arguments.json:
        print(json.dumps(_document(records), indent=2, allow_nan=False, default=str))
    else:
        for line in _report(records):
            print(line)
    if not compare.comparable(records):
        note = "the runs have other test samples (another seed or other shares), so their figures compare only roughly"
        if not compare.same_data(records):
            note = "the runs are on different data, so their figures do not compare, and none is marked"
        print(f"gradflow: note: {note}", file=sys.stderr, flush=True)
    if arguments.out is not None:
        _draw(records, arguments.out)
    return 0


def _names(records: Sequence[Record]) -> list[str]:
    """Return what to call the runs: the last part of their paths, or the paths, if those are not all different."""
    last = [os.path.basename(os.path.normpath(record.folder)) for record in records]
    return [printable(name) for name in (last if len(set(last)) == len(last) else [r.folder for r in records])]


def _report(records: Sequence[Record]) -> Iterator[str]:
    """Yield the lines of the comparison."""
    from gradflow.training.runs import compare

    rows: list[tuple[str, list[str]]] = [("", _names(records)), ("state", [_text(r.state) for r in records])]
    for table in compare.TABLES:
        different = compare.differences(records, table)
        rows.append((f"{table}: {'these differ' if different else 'all equal'}", []))
        rows += [(f"  {name}", list(map(_text, _short_paths(name, values)))) for name, values in different.items()]
    figures, averaged = compare.figures(records), compare.averaged(records)
    rows.append(("figures (* best)" if figures else "no figures yet", []))
    for name, values in figures.items():
        cells = [_number(name, value) for value in values]
        top = {cells[i] for i in compare.marks(records, name, values)}
        if top and set(cells) - top - {"-"}:  # not all are printed alike
            cells = [cell + ("*" if cell in top else " ") for cell in cells]
        rows.append((f"  {name.replace('_', ' ')}{', mean' if name in averaged else ''}", cells))
    first = max(len(label) for label, cells in rows if cells)
    widths = [max((len(cells[i]) for _, cells in rows if cells), default=0) for i in range(len(records))]
    for label, cells in rows:
        yield f"{label:{first}}{''.join(f'   {c:>{w}}' for c, w in zip(cells, widths, strict=False))}".rstrip()


def _short_paths(name: str, values: Sequence[Any]) -> Sequence[Any]:
    """Return the values of a setting, those of files by their names alone if these differ."""
    if not name.endswith(("dataset", "_file")):
        return values
    last = [value if value is None else os.path.basename(os.path.normpath(str(value))) for value in values]
    return last if len(set(last)) == len(set(values)) else values


def _text(value: Any) -> str:
    """A value from a config in a few characters."""
    text = "-" if value is None else ",".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
    text = printable(text)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."


def _number(name: str, value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    if name.endswith("accuracy"):
        return f"{100 * value:.2f} %"
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e9 else f"{value:.4g}"


def _document(records: Sequence[Record]) -> dict[str, Any]:
    """Return the comparison as JSON has it, without numbers that are not finite."""
    from gradflow.training.runs import compare

    figures = compare.figures(records)
    document: dict[str, Any] = finite(
        {
            "runs": [
                {"folder": r.folder, "state": r.state, **{n: dict(t) for n, t in r.tables.items()}} for r in records
            ],
            "different": {table: compare.differences(records, table) for table in compare.TABLES},
            "figures": {name: {"values": v, "best": compare.marks(records, name, v)} for name, v in figures.items()},
            "comparable": compare.comparable(records),
        }
    )
    return document


def _draw(records: Sequence[Record], out: str) -> None:
    from gradflow.training.curves import compare_png

    drawn = [(name, record) for name, record in zip(_names(records), records, strict=True) if record.histories]
    if not drawn:
        raise UsageError("none of the runs has finished an epoch, so there are no curves to draw")
    write_out(out, compare_png([name for name, _ in drawn], [record.histories for _, record in drawn]))
    left_out = sorted(set(_names(records)) - {name for name, _ in drawn})
    more = f"; not in it, since no epoch is finished: {', '.join(left_out)}" if left_out else ""
    print(f"gradflow: the curves are in {printable(out)}{more}", file=sys.stderr, flush=True)
