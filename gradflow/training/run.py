"""Former name of `gradflow.training.run_folder`; old imports keep working."""

from gradflow.training.run_folder import *  # noqa: F403
