"""What tests of tables from files share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradflow.data import DataError
from gradflow.tables import read_table


def refusal(source: Any, **options: Any) -> str:
    """The message with which a file or a frame is refused, on one line."""
    with pytest.raises(DataError) as error:
        read_table(source, **options)
    assert str(error.value).isprintable()
    return str(error.value)


def written(folder: Path, content: str | bytes) -> Path:
    """The path of a CSV file that is written to a folder."""
    path = folder / "table.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
