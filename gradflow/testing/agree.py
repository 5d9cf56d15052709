"""Former name of `gradflow.testing.compare_devices`; old imports keep working."""

from gradflow.testing.compare_devices import *  # noqa: F403
