"""Training: the loop `fit`, and `train`, a whole run whose folder holds what is needed to repeat it."""

from gradflow.training.epoch import Step
from gradflow.training.loop import Epoch, NonFiniteLossError, evaluate, fit
from gradflow.training.predictor import Predictor, load_run
from gradflow.training.results import Result
from gradflow.training.runs import Run, resume, train
from gradflow.training.settings import Settings, SettingsError, read_config
from gradflow.training.trainer import Trainer

__all__ = [
    "Epoch",
    "NonFiniteLossError",
    "Predictor",
    "Result",
    "Run",
    "Settings",
    "SettingsError",
    "Step",
    "Trainer",
    "evaluate",
    "fit",
    "load_run",
    "read_config",
    "resume",
    "train",
]
