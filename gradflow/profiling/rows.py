"""Rows of a profile: spans of the same operation summed up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from gradflow.profiling.spans import OPERATIONS, Span, is_asynchronous


@dataclass
class Row:
    """What all calls of an operation in one phase, region and device took: an element of `Profile.rows`.

    >>> import gradflow as gf
    >>> with gf.profile() as p:
    ...     y = gf.ones((2, 3)) * 2.0
    >>> (row,) = [row for row in p.rows if row.name == "multiply"]
    >>> row.phase, row.calls, row.launches, row.bytes_read, row.bytes_written
    ('forward', 1, 1, 24, 24)
    """

    name: str
    """The operation; or the function of the backend, if that was called outside of an operation."""
    phase: str
    """"forward", "backward", "update" (an optimizer, clipping) or "replay" (of a captured step)."""
    region: str
    """Where the operation belongs: the path of a module, after the name of a region of the user; or ""."""
    device: str
    """The device; "" for an operation that does nothing on a device."""
    calls: int = 0
    """How often it ran. In a backward pass, each node of the graph counts once."""
    host_seconds: float = 0.0
    """The time on the host, with that of operations inside."""
    self_seconds: float = 0.0
    """The time on the host without that of operations inside."""
    device_seconds: float = 0.0
    """The time on the device, without operations inside. On the CPU, the time in functions of the backend."""
    launches: int = 0
    """What was given to the device to do: kernels, products, copies and fills."""
    bytes_read: int = 0
    """The sizes of the arrays that functions of the backend got."""
    bytes_written: int = 0
    """The sizes of the arrays that they made or changed."""
    parts: list[Row] = field(default_factory=list)
    """The functions of the backend that it called, each as a row."""

    def add(self, other: Row) -> None:
        """Add the numbers of another row to this one, and its parts to those of the same name."""
        for name in _NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for part in other.parts:
            _same(self.parts, part).add(part)


_WORDS = ("name", "phase", "region", "device")
_NUMBERS = (
    "calls", "host_seconds", "self_seconds", "device_seconds", "launches", "bytes_read", "bytes_written"
)  # fmt: skip


def _same(rows: list[Row], row: Row) -> Row:
    """The one of the rows with the name of `row`; added to them if there is none."""
    for each in rows:
        if each.name == row.name:
            return each
    rows.append(Row(row.name, row.phase, row.region, row.device))
    return rows[-1]


def owner(span: Span) -> Span | None:
    """The operation around a span, or None."""
    outer = span.outer
    while outer is not None and outer.kind not in OPERATIONS:
        outer = outer.outer
    return outer


def row_of(span: Span) -> Row:
    """The row of one span, with its own numbers alone."""
    device = "" if span.backend is None else str(span.backend.device)
    seconds = (span.end - span.start) / 1e9
    on_device = 0.0
    if span.kind == "call" and span.backend is not None and not is_asynchronous(span.backend):
        on_device = seconds
    if span.events is not None:
        on_device = span.events[1].seconds_since(span.events[0])
    return Row(
        span.name, span.phase, span.region, device, 1, seconds, seconds, on_device, span.launches, span.read,
        span.written,
    )  # fmt: skip


def rows_of(spans: Iterable[Span]) -> list[Row]:
    """The rows of operations, each once for each phase, region and device. Waits for the events of all spans."""
    single: dict[Span, Row] = {}
    for span in spans:
        if span.kind not in OPERATIONS and span.kind != "call":
            continue
        row, outer = row_of(span), owner(span)
        if outer is None or span.kind != "call":
            single[span] = row
        if outer is None:
            continue
        around = single[outer]
        if span.kind != "call":
            around.self_seconds -= row.host_seconds
            continue
        _same(around.parts, row).add(row)
        around.launches += row.launches
        around.bytes_read += row.bytes_read
        around.bytes_written += row.bytes_written
        around.device = around.device or row.device
        if outer.events is None:
            around.device_seconds += row.device_seconds
    return grouped(single.values(), ("name", "phase", "region", "device"))


def grouped(rows: Iterable[Row], names: tuple[str, ...]) -> list[Row]:
    """The sums of rows that agree in the attributes `names`."""
    found: dict[Any, Row] = {}
    for row in rows:
        key = tuple(getattr(row, name) for name in names)
        if key not in found:
            name, phase, region, device = [getattr(row, n) if n in names else "" for n in _WORDS]
            found[key] = Row(name, phase, region, device)
        found[key].add(row)
    return list(found.values())
