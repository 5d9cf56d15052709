"""The figures of the roofline as tables."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.tables import markdown
from benchmarks.roofline.products import PRODUCTS
from gradflow.text import three_digits

GIGA = 1e9


def text(figures: dict[str, Any]) -> str:
    """Return all tables, as Markdown."""
    parts = [figures["head"], _ceilings(figures), _products(figures), _steps(figures), *figures["left_out"]]
    return "\n\n".join(parts)


def _ceilings(figures: dict[str, Any]) -> str:
    found, threads = figures["ceilings"], figures["threads"]
    lines = {
        f"multiply-adds on {count} thread{'s' if count != '1' else ''}, GFLOP/s": [three_digits(rate / GIGA)]
        for count, rate in found["operations_per_second"].items()
    }
    for name, rate in found["read_bytes_per_second"].items():
        lines[f"reading from {name} on {threads} threads, GB/s"] = [three_digits(rate / GIGA)]
    return markdown("ceiling", [""], lines)


def _products(figures: dict[str, Any]) -> str:
    """GFLOP/s of the products in each row."""
    lines, titles = {}, {title: None for each in figures["products"] for title in each["seconds"]}
    for each in figures["products"]:
        rates = [
            " / ".join(_two_digits(each["operations"] / seconds[name] / GIGA) for name in PRODUCTS) if seconds else ""
            for seconds in (each["seconds"].get(title) for title in titles)
        ]
        lines[f"{each['rows']} x {each['inputs']} x {each['outputs']}"] = rates
    return f"GFLOP/s: {' / '.join(PRODUCTS)}\n\n{markdown('rows x inputs x outputs', list(titles), lines)}"


def _two_digits(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 9.95 else f"{rate:.2g}"


def _steps(figures: dict[str, Any]) -> str:
    """GFLOP/s of the products of a step, in its whole time, and the operations for each byte."""
    lines, titles = {}, {title: None for each in figures["steps"] for title in each["seconds"]}
    for each in figures["steps"]:
        rates = [
            f"{each['operations'] / each['seconds'][title] / GIGA:.3g}" if title in each["seconds"] else ""
            for title in titles
        ]
        name = f"{each['letter']}: {each['size']}, batch {each['batch']}"
        lines[name] = [f"{each['operations'] / each['bytes']:.3g}", *rates]
    return f"GFLOP/s of whole steps, Adam\n\n{markdown('step', ['flop per byte', *titles], lines)}"
