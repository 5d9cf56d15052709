"""Datasets on the host, and batches of them on a device."""

from gradflow.data.datasets import DATASETS, Dataset, Split, load
from gradflow.data.loader import Batches

__all__ = ["DATASETS", "Batches", "Dataset", "Split", "load"]
