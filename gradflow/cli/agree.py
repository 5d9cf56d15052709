"""`gradflow agree`: compare the results of two devices."""

from __future__ import annotations

import argparse
from typing import Any

from gradflow.cli.options import add_json, add_module, import_module
from gradflow.cli.output import FAILED, UsageError, nothing_on_stdout

_HELP = """\
Run operations, the forward and backward pass of a model and short training
runs on two devices. Print the error of each result, in ulp and as a share of
its bound.

Rounded results are compared with float64 on the CPU, within a few ulp or a
bound from error analysis. Copies, masks, comparisons and random bits must be
equal bit for bit.

One DEVICE is compared with the CPU. Without DEVICE, the CPU is compared with
CUDA if it can be used, otherwise with gradflow's own fake device.
"""
_EXAMPLES = """\
examples:
  gradflow agree
  gradflow agree cpu cuda
  gradflow agree cuda:0 cuda:1 --json

exit status: 0 all agree; 1 some do not; 2 invalid input; 130 Ctrl-C
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser of the command line."""
    parser = commands.add_parser(
        "agree",
        help="compare the results of two devices",
        usage="gradflow agree [DEVICE [DEVICE]] [--module NAME] [--json]",
        description=_HELP,
        epilog=_EXAMPLES,
    )
    parser.set_defaults(run=run)
    parser.add_argument("devices", nargs="*", metavar="DEVICE", help="cpu, cuda, cuda:N, fake or a plug-in's device")
    add_module(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare two devices, print the report, and return the exit status."""
    from gradflow.testing import compare_devices

    with nothing_on_stdout():
        import_module(arguments.module)
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
        table = compare_devices.Table(lambda line: print(line, flush=True))
        rows = compare_devices.compare(pair.first, pair.second, each=table.add)
        print(f"\n{compare_devices.verdict(rows)}")
    return 0 if all(row.passed for row in rows) else FAILED
