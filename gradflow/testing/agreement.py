"""Former name of `gradflow.testing.tolerances`; old imports keep working."""

from gradflow.testing.tolerances import *  # noqa: F403
