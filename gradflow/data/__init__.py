"""Datasets on the host, and batches of them on a device. Only this room and those above it know NumPy and scikit-learn."""

from gradflow.data.datasets import DATASETS, Dataset, Split, load
from gradflow.data.loader import Batches

__all__ = ["DATASETS", "Batches", "Dataset", "Split", "load"]
