"""Perceptrons with the interface of scikit-learn's estimators."""

import typing as _typing

if _typing.TYPE_CHECKING:
    from gradflow.sklearn.public import *  # noqa: F403
else:
    from gradflow.environment import offering as _offering

    __getattr__ = _offering(__name__)
