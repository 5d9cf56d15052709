"""`gradflow export`: the model of a run as a file that other programs run."""

from __future__ import annotations

import argparse
from typing import Any

from gradflow.cli.options import add_folder, check_out, write_out
from gradflow.cli.output import UsageError
from gradflow.cli.predict import load_model, usage_errors
from gradflow.text import printable

_HELP = """\
Write the model of a run as an ONNX file, which runs without gradflow: from the
inputs as they are in the data to labels and probabilities, or to values.

FOLDER is the folder of a run, or its model.safetensors. Of a run on a table,
the file has one input for each column that is used, by its name.
"""
_EXAMPLES = """\
examples:
  gradflow export runs/digits-1 --onnx digits.onnx
  gradflow export runs/adult-1 --onnx adult.onnx

The file appears when it is complete. It replaces an ONNX file of gradflow's,
and no other.

exit status: 0 done; 1 the file cannot be written; 2 invalid input;
130 Ctrl-C
"""
_START = b"\x08\x08\x12\x08gradflow"
"""How the files begin: the IR version 8, and the name of their producer."""


def add_parser(commands: Any) -> None:
    """Add the command to the parser of the command line."""
    parser = commands.add_parser(
        "export",
        help="a trained model as an ONNX file",
        usage="gradflow export FOLDER --onnx FILE.onnx",
        description=_HELP,
        epilog=_EXAMPLES,
    )
    parser.set_defaults(run=run)
    add_folder(parser)
    parser.add_argument("--onnx", metavar="FILE", required=True, help="the file to write")


def run(arguments: argparse.Namespace) -> int:
    """Write the file, print its inputs and outputs, and return the exit status."""
    from gradflow.onnx.exporting import exported

    out = arguments.onnx
    if out and not out.endswith(".onnx"):
        raise UsageError(f"--onnx {out}: the name of an ONNX file ends in .onnx")
    check_out(out, lambda start: start.startswith(_START), "--onnx")
    predictor = load_model(arguments.folder, "cpu")
    with usage_errors(arguments.folder):
        model = exported(predictor)
    write_out(out, model.SerializeToString())
    print(printable(f"{arguments.folder} ({predictor.describe()}) is written to {out}"))
    for what, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            print(f"{what} {printable(_described(value))}")
    return 0


def _described(value: Any) -> str:
    """Return the name, the type and the shape of an input or output."""
    from onnx.helper import tensor_dtype_to_string

    tensor = value.type.tensor_type
    kind = tensor_dtype_to_string(tensor.elem_type).rpartition(".")[2].lower()
    shape = ", ".join(each.dim_param or str(each.dim_value) for each in tensor.shape.dim)
    return f"{value.name}: {kind} ({shape})"
