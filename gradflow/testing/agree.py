"""The former name of `gradflow.testing.compare_devices`."""

from gradflow.testing.compare_devices import *  # noqa: F403
