"""What `gradflow.data` offers; it is imported when it is used first."""

from gradflow.data.built_in import DATASETS
from gradflow.data.datasets import Dataset, load, load_inputs
from gradflow.data.inputs import DataError
from gradflow.data.loader import Batches
from gradflow.data.reading import Samples
from gradflow.data.scaling import Standardizer
from gradflow.data.splits import Part, Split

__all__ = [
    "DATASETS", "Batches", "DataError", "Dataset", "Part", "Samples", "Split", "Standardizer", "load", "load_inputs",
]  # fmt: skip
