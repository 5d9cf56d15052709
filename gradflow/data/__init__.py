"""Datasets on the host, their parts on one scale, and batches of them on a device."""

import typing as _typing

if _typing.TYPE_CHECKING:
    from gradflow.data.public import *  # noqa: F403
else:
    from gradflow.environment import offering as _offering

    __getattr__ = _offering(__name__)
