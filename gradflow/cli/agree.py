"""`gradflow agree`: the results of two devices compared."""

from __future__ import annotations

import argparse
from typing import Any

from gradflow.cli.output import FAILED, UsageError, nothing_on_stdout

_AGREE_HELP = """\
Run operations, a model's forward and backward and short training runs on two
devices, and print for each result its error, also as a share of its bound.
Results that are rounded are compared with float64 on the CPU, in ulp or by the
bound of their error analysis; the others (copies, masks, comparisons, random
bits) must be equal bit for bit.

One DEVICE is compared with the CPU. Without any, the CPU is compared with CUDA
where that can be used, else with gradflow's own fake device.
"""
_AGREE_EXAMPLES = """\
examples:
  gradflow agree
  gradflow agree cpu cuda
  gradflow agree cuda:0 cuda:1 --json

exit status: 0 all agree; 1 something does not; 2 bad input; 130 Ctrl-C
"""


def add_parser(commands: Any, formatter: Any) -> None:
    """Add the command to the parser of the command line."""
    parser = commands.add_parser(
        "agree",
        help="compare the results of two devices",
        usage="gradflow agree [DEVICE [DEVICE]] [--json]",
        description=_AGREE_HELP,
        epilog=_AGREE_EXAMPLES,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    parser.add_argument("devices", nargs="*", metavar="DEVICE", help="cpu, cuda, cuda:N, fake or another backend's")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")


def run(arguments: argparse.Namespace) -> int:
    """Compare two devices and print the report; the exit status."""
    from gradflow.testing import compare_devices

    with nothing_on_stdout():
        try:
            pair = compare_devices.choose(arguments.devices)
        except (ValueError, RuntimeError) as error:
            raise UsageError(str(error)) from None
    if arguments.json:
        with nothing_on_stdout():
            rows = compare_devices.compare(pair.first, pair.second)
            document = compare_devices.as_json(pair, rows)
        print(document)
    else:
        print(compare_devices.heading(pair), flush=True)
        rows = compare_devices.compare(
            pair.first, pair.second, each=compare_devices.Table(lambda line: print(line, flush=True)).add
        )
        print(f"\n{compare_devices.verdict(rows)}")
    return 0 if all(row.passed for row in rows) else FAILED
