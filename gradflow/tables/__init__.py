"""Tables of numbers, texts and dates, read from files and data frames."""

import typing as _typing

if _typing.TYPE_CHECKING:
    from gradflow.tables.public import *  # noqa: F403
else:
    from gradflow.environment import offering as _offering

    __getattr__ = _offering(__name__)
