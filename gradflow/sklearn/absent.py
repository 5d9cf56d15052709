"""The parameters that scikit-learn's perceptrons have and these do not: the error names what takes their place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import ParamSpec

P = ParamSpec("P")

_OF_SGD = "leave it out: it belongs to SGD"
_OF_ADAM = "leave it out: it has its usual value"
ABSENT = {
    "alpha": "use weight_decay",
    "solver": "leave it out: it is AdamW",
    "learning_rate": "leave it out: it is constant",
    "loss": "leave it out: it is the squared error",
    "beta_1": _OF_ADAM,
    "beta_2": _OF_ADAM,
    "epsilon": _OF_ADAM,
    "momentum": _OF_SGD,
    "nesterovs_momentum": _OF_SGD,
    "power_t": _OF_SGD,
    "max_fun": "leave it out: it belongs to L-BFGS",
}


def absence(estimator: object, names: Collection[str]) -> str | None:
    """Return which of these parameters the estimator does not have, and what to use; None if none is known.

    >>> from gradflow.sklearn import MLPClassifier
    >>> from gradflow.sklearn.absent import absence
    >>> absence(MLPClassifier(), ["alpha", "max_iter"])
    "parameters of scikit-learn's that MLPClassifier does not have: alpha (use weight_decay)"
    """
    told = [f"{name} ({reason})" for name, reason in ABSENT.items() if name in names]
    lacking = f"parameters of scikit-learn's that {type(estimator).__name__} does not have"
    return f"{lacking}: {', '.join(told)}" if told else None


def naming_absent(init: Callable[P, None]) -> Callable[P, None]:
    """Return this `__init__`, whose TypeError for parameters that scikit-learn has tells what to use."""

    @functools.wraps(init)
    def checked(*words: P.args, **params: P.kwargs) -> None:
        message = absence(words[0], params)
        if message:
            raise TypeError(message)
        init(*words, **params)

    return checked
