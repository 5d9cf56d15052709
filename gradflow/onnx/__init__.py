"""Models as ONNX files, which other programs run without gradflow."""

import typing as _typing

if _typing.TYPE_CHECKING:
    from gradflow.onnx.public import *  # noqa: F403
else:
    from gradflow.environment import offering as _offering

    __getattr__ = _offering(__name__)
