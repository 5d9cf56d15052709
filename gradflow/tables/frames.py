"""Frames of pandas and polars, and dicts of sequences. Neither library is imported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import numpy as np

from gradflow.data.inputs import DataError
from gradflow.tables.table import Column, Kinds, check_names
from gradflow.tables.typed import NAT, TypedColumn


class FrameSource:
    """A frame, or a dict from names to sequences, as a source of columns. The index of a pandas frame is left out.

    Raises TypeError for anything else; DataError for a frame without rows, columns of different lengths, and columns
    that have no name of their own.
    """

    def __init__(self, frame: Any) -> None:
        self.notes: list[str] = []
        self._library = _library_of(frame)
        values: list[Any]
        if self._library == "pandas":
            names, values = list(frame.columns), [frame.iloc[:, place] for place in range(frame.shape[1])]
        elif self._library == "polars":
            names, values = frame.columns, frame.get_columns()
        elif isinstance(frame, Mapping):
            names, values = list(frame), [_sequence(name, column) for name, column in frame.items()]
        else:
            wanted = "a path, a frame of pandas or polars, or a dict from names to sequences"
            raise TypeError(f"a table is read from {wanted}; got {type(frame).__name__}")
        self.source = f"the frame of {self._library}" if self._library else "the dict"
        self.names = tuple(str(name).strip() for name in names)
        check_names(self.names, self.source)
        lengths = sorted({len(column) for column in values})
        if len(lengths) > 1:
            raise DataError(f"{self.source} has columns of different lengths: {lengths[0]} and {lengths[-1]} rows")
        if lengths in ([], [0]):
            raise DataError(f"{self.source} has no {'rows' if lengths else 'columns'}")
        self._rows, self._values = lengths[0], dict(zip(self.names, values, strict=True))

    def read(self, kinds: Kinds) -> list[Column]:
        """Return these columns."""
        return self._part(kinds, 0, self._rows)

    def chunks(self, kinds: Kinds, rows: int) -> Iterator[list[Column]]:
        """Yield these columns for so many rows, then for the next ones; their kinds are given."""
        for start in range(0, self._rows, rows):
            yield self._part(kinds, start, start + rows)

    def _part(self, kinds: Kinds, start: int, stop: int) -> list[Column]:
        made = []
        for name, kind in kinds.items():
            column, values = TypedColumn(name, kind, self.source, start, self.notes), self._values[name]
            if self._library == "pandas":
                made.append(_pandas_column(values.iloc[start:stop], column))
            elif self._library == "polars":
                made.append(_polars_column(values[start:stop], column))
            else:
                made.append(_sequence_column(values[start:stop], column))
        return made


def _sequence(name: Any, values: Any) -> Any:
    """Return what a dict holds for a column as an array or a list. Raises TypeError for what has no order of rows."""
    if isinstance(values, np.ma.MaskedArray):
        return values.tolist()  # with None where it is masked
    if isinstance(values, (str, bytes, Set, Mapping)) or not isinstance(values, Iterable):
        raise TypeError(f"column {name!r} of the dict is expected to be a sequence; got {type(values).__name__}")
    return values if isinstance(values, np.ndarray) else list(values)


def _library_of(frame: Any) -> str:
    """Return "pandas" or "polars" for a frame of theirs, else ""."""
    modules = (base.__module__.partition(".")[0] for base in type(frame).__mro__ if base.__name__ == "DataFrame")
    return next((module for module in modules if module in ("pandas", "polars")), "")


def _pandas_column(series: Any, column: TypedColumn) -> Column:
    missing, kind = series.isna().to_numpy(bool), series.dtype.kind
    if missing.all():
        return column.empty(len(series))
    if hasattr(series, "cat"):
        column.kind = column.kind or "text"
        return column.texts(series.cat.codes.to_numpy(), [str(level) for level in series.cat.categories])
    if kind == "b":
        return column.bools(series.to_numpy(bool, na_value=False), missing)
    if kind in "iu":
        return column.numbers(series.to_numpy(f"{kind}8", na_value=0), missing)
    if kind == "f":
        return column.numbers(series.to_numpy(np.float64, na_value=np.nan), missing)
    if kind == "M" and not hasattr(series.dtype, "pyarrow_dtype"):
        naive = series.dt.tz_convert(None) if getattr(series.dtype, "tz", None) else series
        return column.dates(naive.to_numpy("datetime64[us]").view(np.int64))
    if kind in "cm":
        raise column.refused(str(series.dtype))
    return column.objects(series.to_numpy(object).tolist())


def _polars_column(series: Any, column: TypedColumn) -> Column:
    missing, dtype = series.is_null().to_numpy(), series.dtype
    if missing.all():
        return column.empty(len(series))
    if dtype.is_float():
        return column.numbers(series.fill_null(float("nan")).to_numpy(), missing)
    if dtype.is_integer() and str(dtype) not in ("Int128", "UInt128"):
        return column.numbers(series.fill_null(0).to_numpy(), missing)
    if str(dtype) == "Boolean":
        return column.bools(series.fill_null(False).to_numpy(), missing)
    if str(dtype).partition("(")[0] in ("Date", "Datetime"):
        return column.dates(series.dt.epoch("us").fill_null(NAT).to_numpy())
    if dtype.is_nested() or str(dtype).partition("(")[0] in ("Binary", "Duration", "Object", "Time"):
        raise column.refused(str(dtype))
    if str(dtype).partition("(")[0] in ("Categorical", "Enum"):
        column.kind = column.kind or "text"
    return column.objects(series.to_list())


def _sequence_column(values: Any, column: TypedColumn) -> Column:
    if isinstance(values, np.ndarray):
        if values.ndim != 1 or values.dtype.kind in "cmSV":
            raise column.refused(f"{values.dtype} of shape {values.shape}")
        if values.dtype.kind in "iuf":
            return column.numbers(values, np.zeros(len(values), bool))
        if values.dtype.kind == "M":
            return column.dates(values.astype("datetime64[us]").view(np.int64))
    return column.objects(list(values))
