"""Datasets on the host, their parts on one scale, and batches of them on a device."""

from gradflow.data.datasets import DATASETS, Dataset, load
from gradflow.data.inputs import DataError
from gradflow.data.loader import Batches
from gradflow.data.scaling import Standardizer
from gradflow.data.splits import Part, Split

__all__ = ["DATASETS", "Batches", "DataError", "Dataset", "Part", "Split", "Standardizer", "load"]
