"""Training: the `Trainer`, whose loop is yours, and `train`, a whole run with a folder of what it needs to go on."""

import typing as _typing

if _typing.TYPE_CHECKING:
    from gradflow.training.public import *  # noqa: F403
else:
    from gradflow.environment import offering as _offering

    __getattr__ = _offering(__name__)
