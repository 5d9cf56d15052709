"""What `gradflow.tables` offers; it is imported when it is used first."""

from gradflow.tables.columns import Columns
from gradflow.tables.reading import read_chunks, read_table
from gradflow.tables.table import Column, Table

__all__ = ["Column", "Columns", "Table", "read_chunks", "read_table"]
