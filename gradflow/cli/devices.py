"""`gradflow devices`: the devices, and why the others cannot be used."""

from __future__ import annotations

import json
from typing import Any

import gradflow as gf
from gradflow.backend.discovery import backend_prefixes, backend_source, discovery_notes
from gradflow.backend.registry import describe_device, devices_of
from gradflow.cli.output import MISUSED, nothing_on_stdout, print_error
from gradflow.text import printable
from gradflow.training import SettingsError
from gradflow.training.train import auto_device

_DEVICES_HELP = """\
List the devices, and for each that cannot be used, the reason and what to type.

With --json, one object:
  gradflow   the version
  backends   a list of: prefix, source (the package), usable (true or false), code
             (the state in one word, like "driver-too-old"), state, fix (what to
             type), devices (a list of: device, description, memory in bytes)
  auto       device (null if GRADFLOW_DEVICE names what cannot be used), reason
  notes      sentences about plug-ins that are left out

environment:
  GRADFLOW_DEVICE          what auto stands for
  GRADFLOW_BACKEND_BLOCK   backends not to load, with commas between them
  GRADFLOW_FAST            0: no kernels compiled by numba; 1: with them
  GRADFLOW_FUSED           0: no kernels but those composed of array functions
"""


def add_parser(commands: Any, formatter: Any) -> None:
    """Add the command to the parser of the command line."""
    parser = commands.add_parser(
        "devices",
        help="list the devices, and for each that cannot be used, why",
        description=_DEVICES_HELP,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="the same as one JSON object")


def _device_report() -> dict[str, Any]:
    """What `gradflow devices --json` prints; its help says what is in it."""
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
    auto: dict[str, str | None]
    try:
        chosen, reason = auto_device()
        auto = {"device": str(chosen), "reason": printable(reason)}
    except SettingsError as error:
        auto = {"device": None, "reason": printable(str(error))}
    notes = list(map(printable, discovery_notes()))
    return {"gradflow": gf.__version__, "backends": backends, "auto": auto, "notes": notes}


def run(as_json: bool) -> int:
    """Print the report on all devices; the exit status."""
    with nothing_on_stdout():
        report = _device_report()
    auto = report["auto"]
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _print_devices(report)
    if auto["device"] is None:
        print_error(auto["reason"])
        return MISUSED
    if not as_json:
        print(f"auto is {auto['device']} ({auto['reason']})")
    return 0


def _print_devices(report: dict[str, Any]) -> None:
    rows = []
    for backend in report["backends"]:
        rows += [(d["device"], "yes", d["description"]) for d in backend["devices"]]
        if not backend["usable"]:
            rows.append((backend["prefix"], "no", backend["state"]))
            if backend["fix"]:
                rows.append(("", "", backend["fix"]))
    width = max(len(name) for name, _, _ in rows) + 2
    print(f"{'device':{width}}  usable  what it is, or why not")
    for name, usable, words in rows:
        print(f"{name:{width}}  {usable:6}  {words}")
    for note in report["notes"]:
        print(f"note: {note}")
