"""What `gradflow.tables` offers; it is imported when it is used first."""

from gradflow.tables.table import Column, Table

__all__ = ["Column", "Table"]
