"""Datasets on the host, their parts on one scale, and batches of them on a device."""

from gradflow.data.datasets import DATASETS, Dataset, load, load_inputs
from gradflow.data.inputs import DataError
from gradflow.data.loader import Batches
from gradflow.data.reading import Samples
from gradflow.data.scaling import Standardizer
from gradflow.data.splits import Part, Split

__all__ = [
    "DATASETS", "Batches", "DataError", "Dataset", "Part", "Samples", "Split", "Standardizer", "load", "load_inputs",
]  # fmt: skip
