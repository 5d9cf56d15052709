"""What `gradflow.training` offers; it is imported when it is used first."""

from gradflow.training.epoch import Epoch, NonFiniteLossError, Step
from gradflow.training.loop import evaluate, fit
from gradflow.training.runs.predictor import Predictor, load_run
from gradflow.training.runs.results import Result
from gradflow.training.runs.run import Run, resume, train
from gradflow.training.runs.settings import Settings, SettingsError, read_config
from gradflow.training.tensorboard import TensorBoard
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
    "TensorBoard",
    "Trainer",
    "evaluate",
    "fit",
    "load_run",
    "read_config",
    "resume",
    "train",
]
