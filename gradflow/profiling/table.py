"""A profile as a table of text."""

from __future__ import annotations

from collections.abc import Sequence

from gradflow.profiling.rows import Row, grouped

_LONGEST = 40
_COLUMNS = ("calls", "host ms", "mean us", "device ms", "share", "launches", "read MB", "written MB")
NOTHING = "nothing was measured"


def table(rows: Sequence[Row], total: Row, asynchronous: bool, by: str) -> str:
    """The rows as a table, those that took longest first.

    asynchronous: whether events of a device have timed some of it; then the device's time counts, else the host's.
    by: "operation", or "region".
    """
    devices = sorted({row.device for row in rows if row.device})
    keys = ("name" if by == "operation" else "region", "phase", *(("device",) if len(devices) > 1 else ()))
    whole = total.device_seconds if asynchronous else total.host_seconds

    def time(row: Row) -> float:
        return row.device_seconds if asynchronous else row.self_seconds

    lines: list[tuple[str, ...]] = [(by, *keys[1:], *_COLUMNS)]
    for row in sorted(grouped(rows, keys), key=time, reverse=True):
        words = [getattr(row, key) for key in keys]
        lines.append((words[0] or "-", *words[1:], *_numbers(row, time(row), whole)))
        if by == "operation" and [part.calls for part in row.parts] != [row.calls]:
            for part in sorted(row.parts, key=lambda each: each.device_seconds, reverse=True):
                lines.append(("  " + part.name, *[""] * (len(keys) - 1), *_numbers(part, None, whole)))
    if len(lines) == 1:
        return NOTHING
    between = total.host_seconds - sum(row.self_seconds for row in rows)
    rest = Row("between operations", "", "", "", 0, between, between)
    lines.append((rest.name, *[""] * (len(keys) - 1), *_numbers(rest, None if asynchronous else between, whole)))
    lines.append(("total", *[""] * (len(keys) - 1), *_numbers(total, whole, whole)))
    return "\n".join(_aligned(lines, len(keys)))


def _numbers(row: Row, time: float | None, whole: float) -> tuple[str, ...]:
    """The columns of numbers. `time`: what the share of the row is computed from, or None."""
    idle = not row.calls
    return (
        "" if idle else str(row.calls),
        f"{row.host_seconds * 1e3:.3f}",
        "" if idle or not row.phase else f"{row.host_seconds * 1e6 / row.calls:.1f}",
        "" if idle else f"{row.device_seconds * 1e3:.3f}",
        "" if time is None or not whole else f"{100 * time / whole:.1f}%",
        "" if idle else str(row.launches),
        "" if idle else f"{row.bytes_read / 1e6:.3f}",
        "" if idle else f"{row.bytes_written / 1e6:.3f}",
    )


def _aligned(lines: list[tuple[str, ...]], words: int) -> list[str]:
    """The lines with words on the left and numbers on the right of their columns."""
    lines = [(_cut(line[0]), *line[1:]) for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    cells = [
        [x.ljust(w) if i < words else x.rjust(w) for i, (x, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    ]
    return ["  ".join(line).rstrip() for line in cells]


def _cut(name: str) -> str:
    """A long name without its middle."""
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST // 3]}...{name[len(name) - (_LONGEST - _LONGEST // 3 - 3) :]}"
