"""`gradflow devices`: list the devices, and say why the others cannot be used."""

from __future__ import annotations

import argparse
import json
from typing import Any

import gradflow as gf
from gradflow.backend.discovery import backend_prefixes, backend_source, discovery_notes
from gradflow.backend.registry import describe_device, devices_of
from gradflow.cli.options import add_json
from gradflow.cli.output import INVALID, nothing_on_stdout, print_error
from gradflow.text import printable

_HELP = """\
List the devices. For each that cannot be used, say why and what to type.

With --json, print one object:
  gradflow   the version
  backends   a list of objects:
               prefix    the device type
               source    the package
               usable    true or false
               code      the state in one word, such as "driver-too-old"
               state     the state in a sentence
               fix       what to type
               devices   a list of objects: device, description, memory in bytes
  auto       device (null if GRADFLOW_DEVICE names an unusable one), reason
  notes      one sentence for each plug-in that is left out

environment:
  GRADFLOW_DEVICE          the device that "auto" chooses
  GRADFLOW_BACKEND_BLOCK   backends not to load, separated by commas
  GRADFLOW_FAST            0: without kernels compiled by llvmlite; 1: with them
  GRADFLOW_FUSED           0: only kernels composed of array functions
  GRADFLOW_TUNING_FILE     on CUDA, time algorithms for each product, and keep
                           the fastest in this file
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser of the command line."""
    parser = commands.add_parser("devices", help="list the devices, and why some cannot be used", description=_HELP)
    parser.set_defaults(run=run)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the report on all devices and return the exit status."""
    with nothing_on_stdout():
        report = _report()
    auto = report["auto"]
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        _print_table(report)
    if auto["device"] is None:
        print_error(auto["reason"])
        return INVALID
    if not arguments.json:
        print(f"auto is {auto['device']} ({auto['reason']})")
    return 0


def _report() -> dict[str, Any]:
    """Return what `gradflow devices --json` prints; `_HELP` describes it."""
    backends = []
    for prefix in backend_prefixes():
        diagnosis, found = gf.diagnose(prefix), []
        if diagnosis.usable:
            try:
                for device in devices_of(prefix):
                    description, memory = describe_device(device)
                    found.append({"device": str(device), "description": description, "memory": memory})
            except gf.DeviceUnavailableError as error:
                diagnosis = gf.Diagnosis(False, str(error))
        backends.append(
            {
                "prefix": prefix,
                "source": printable(backend_source(prefix)),
                "usable": diagnosis.usable,
                "code": diagnosis.code or ("fine" if diagnosis.usable else "unusable"),
                "state": printable(diagnosis.state),
                "fix": printable(diagnosis.fix),
                "devices": found if diagnosis.usable else [],
            }
        )
    from gradflow.training.runs.preparation import DeviceError, auto_device

    auto: dict[str, str | None]
    try:
        chosen, reason = auto_device()
        auto = {"device": str(chosen), "reason": printable(reason)}
    except DeviceError as error:
        auto = {"device": None, "reason": printable(str(error))}
    notes = list(map(printable, discovery_notes()))
    return {"gradflow": gf.__version__, "backends": backends, "auto": auto, "notes": notes}


def _print_table(report: dict[str, Any]) -> None:
    rows = []
    for backend in report["backends"]:
        rows += [(d["device"], "yes", d["description"]) for d in backend["devices"]]
        if not backend["usable"]:
            rows.append((backend["prefix"], "no", backend["state"]))
            if backend["fix"]:
                rows.append(("", "", backend["fix"]))
    width = max(len(name) for name, _, _ in rows) + 2
    print(f"{'device':{width}}  usable  what it is, or why not")
    for name, usable, text in rows:
        print(f"{name:{width}}  {usable:6}  {text}")
    for note in report["notes"]:
        print(f"note: {note}")
