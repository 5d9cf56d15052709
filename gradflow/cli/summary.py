"""`gradflow summary`: the layers of a run's model in numbers, and the memory that training it takes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from typing import Any

from gradflow.cli.options import add_device, add_folder, add_json
from gradflow.cli.output import print_note
from gradflow.cli.predict import load_model, usage_errors
from gradflow.text import printable

_HELP = """\
Print the layers of a run's model: what they return, their parameters, and the
multiply-adds of the forward pass. Then the memory that a training step takes
with the batch size and the optimizer of the run.

FOLDER is the folder of a run, or the model.safetensors in it.
"""
_EXAMPLES = """\
examples:
  gradflow summary runs/digits-1
  gradflow summary runs/digits-1 --json

exit status: 0 done; 2 invalid input; 130 Ctrl-C
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser of the command line."""
    parser = commands.add_parser(
        "summary",
        help="layers of a trained model, and the memory of training it",
        usage="gradflow summary FOLDER [--json] [--device DEVICE]",
        description=_HELP,
        epilog=_EXAMPLES,
    )
    parser.set_defaults(run=run)
    add_folder(parser)
    add_json(parser, "the tables")
    add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the summary, and return the exit status."""
    import gradflow as gf
    from gradflow.training.runs.folder import CONFIG
    from gradflow.training.runs.preparation import make_optimizer
    from gradflow.training.runs.settings import Settings, read_config

    predictor = load_model(arguments.folder, arguments.device)
    folder = arguments.folder if os.path.isdir(arguments.folder) else os.path.dirname(arguments.folder)
    with usage_errors():
        config, model = os.path.join(folder, CONFIG), predictor.members[0]
        settings = Settings(**read_config(config)["settings"]) if os.path.exists(config) else None
        optimizer = None if settings is None else make_optimizer(settings, model, 1)
        batch_size = 1 if settings is None else settings.batch_size
        found = gf.nn.summary(model, predictor.width, batch_size, optimizer=optimizer)
    if arguments.json:
        document = {"folder": arguments.folder, "members": len(predictor.members), **dataclasses.asdict(found)}
        document["inputs"] = [{"shape": shape, "dtype": dtype} for shape, dtype in found.inputs]
        for device, memory in found.memory.items():
            document["memory"][device]["total"] = memory.total
        print(json.dumps(document, indent=2))
    else:
        print(printable(f"{arguments.folder} ({predictor.describe()})"))
        print(found)
    if len(predictor.members) > 1:
        print_note(f"this is one of {len(predictor.members)} models, which are trained one after another")
    if settings is None:
        print_note(f"there is no {CONFIG} beside the model, so the batch is one sample, and there is no optimizer")
    elif settings.average:
        print_note("the moving average of the weights takes as much memory again as the parameters")
    return 0
