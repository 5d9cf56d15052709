"""The benchmark of tables: a run on small sets for an epoch, wheels that cannot be fetched, and what its rows read."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gradflow.tables import Column, Table, read_table

for package in ("safetensors", "sklearn", "tomli_w", "tqdm"):
    pytest.importorskip(package, exc_type=ImportError)

from benchmarks import tables  # noqa: E402


@pytest.mark.slow
def test_each_row_predicts_the_same_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    assert tables.main(["--sets", "wine,diabetes", "--seeds", "1", "--epochs", "1", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert list(found["sets"]) == ["wine", "diabetes"]
    for figures in found["sets"].values():
        assert list(figures) == list(tables.ROWS)
    assert {*found["sets"]["wine"]["gradflow"]} == {"accuracy", "auroc", "log_loss", "seconds"}
    assert all({*row} == {"rmse", "seconds"} for row in found["sets"]["diabetes"].values())
    assert "wine, 178 rows" in capsys.readouterr().out


def test_a_wheel_that_cannot_be_fetched_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(tables.WHEELS, "plotnine", "no-such-package-of-this-name==0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert tables.main(["--sets", "diamonds", "--data", str(tmp_path)]) == 1
    assert "diamonds: the wheel of no-such-package-of-this-name==0 cannot be used: " in capsys.readouterr().err


def test_a_file_of_a_wheel_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with zipfile.ZipFile(tmp_path / "some_package-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some_package/data/cars.csv", "a,b\n1,2\n")
    path = tables.unpacked("some-package==1.0", "cars.csv", tmp_path)
    assert path.read_text() == "a,b\n1,2\n"
    (tmp_path / "some_package-1.0-py3-none-any.whl").unlink()
    assert tables.unpacked("some-package==1.0", "cars.csv", tmp_path) == path


def test_a_table_is_written_as_it_was(tmp_path: Path) -> None:
    rows = Table(
        [
            Column("x", "number", np.array([0.1, np.nan, 3.0, 1e-300])),
            Column("name", "text", np.array([1, -1, 0, 1], np.int32), levels=('a, "b"', "c\nd")),
        ],
        "here",
    )
    tables.write_csv(tmp_path / "rows.csv", rows)
    back = read_table(str(tmp_path / "rows.csv"))
    np.testing.assert_array_equal(back["x"].values, rows["x"].values)
    assert back["name"].texts() == rows["name"].texts()
