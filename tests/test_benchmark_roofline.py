"""The roofline: a tiny run, its picture, and the ceilings."""

from __future__ import annotations

import json
import math
import platform
import re
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from benchmarks.roofline import ceilings, products
from benchmarks.roofline.__main__ import main
from benchmarks.roofline.plot import STYLES
from benchmarks.workloads import DEEP, TINY

FIGURES = {
    "head": "versions",
    "threads": 2,
    "left_out": [],
    "ceilings": {
        "operations_per_second": {"1": 8e10, "2": 1.6e11},
        "read_bytes_per_second": {"L2": 1e11, "L3": 5e10, "memory": 2e10},
    },
    "products": [
        {
            "letter": "T", "rows": 32, "inputs": 16, "outputs": 8, "operations": 8192, "bytes": 3584,
            "seconds": {"gradflow fast": dict.fromkeys(products.PRODUCTS, 1e-6)},
        }
    ],
    "steps": [
        {
            "letter": "T", "size": "16-8", "batch": 32, "operations": 3e4, "bytes": 1e4,
            "seconds": {"gradflow fast, captured": 2e-5, "gradflow fast, captured, before": 4e-5},
        }
    ],
}  # fmt: skip


@pytest.mark.slow
def test_a_run_gives_tables_figures_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("llvmlite", reason="llvmlite is not installed; it is in the extra 'fast'")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(ceilings, "TURNS", 1)
    monkeypatch.setattr(ceilings, "SECONDS", 1e-4)
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.svg"
    run = ["--workloads", "T", "--rounds", "1", "--turn", "0.01", "--threads", "1"]
    assert main([*run, "--json", str(figures), "--plot", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^\| multiply-adds on 1 thread, GFLOP/s \| [\d.]+ \|$", printed, re.MULTILINE)
    assert re.search(r"^\| 32 x 16 x 16( \| [\d.]+ / [\d.]+ / [\d.]+){2} \|$", printed, re.MULTILINE)
    assert re.search(r"^\| T: 2-16-16-1, batch 32 \| 1\.38 \| ", printed, re.MULTILINE)
    content = json.loads(figures.read_text())
    assert {*content["products"][0]["seconds"]} <= {*STYLES}
    assert {*content["steps"][0]["seconds"]} >= {"gradflow fast, captured", "GEMMs alone, NumPy's BLAS"}
    assert not re.search(r"(?<!\w)/\w", figures.read_text()), "a path"
    assert f'"{platform.node()}"' not in figures.read_text()
    assert ElementTree.parse(picture).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_a_picture_of_figures_that_were_read_is_the_same_each_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    figures = tmp_path / "figures.json"
    figures.write_text(json.dumps(FIGURES))
    pictures = []
    for name in ("one.svg", "two.svg"):
        assert main(["--read", str(figures), "--plot", str(tmp_path / name)]) == 0
        pictures.append((tmp_path / name).read_bytes())
    assert pictures[0] == pictures[1]
    assert b"<dc:date>" not in pictures[0]
    printed = capsys.readouterr().out
    assert "| 32 x 16 x 8 | 8.2 / 8.2 / 8.2 |" in printed
    assert "| T: 16-8, batch 32 | 3 | 1.5 | 0.75 |" in printed


def test_a_file_that_cannot_be_read_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--read", "no/such/file.json"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_rate_is_what_all_threads_do_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def work(thread: int, repeats: int) -> None:
        clock[0] += 0.25 * repeats if thread == 0 else 0.0

    monkeypatch.setattr(ceilings, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert ceilings.rate(1, work, 3.0) == 12.0
    assert ceilings.rate(4, work, 3.0) == 48.0


def test_the_ceilings_loops_compute_and_read_everything() -> None:
    """The sums are written, and a product of 2 times the lanes and chains counts as that many operations."""
    pytest.importorskip("llvmlite", reason="llvmlite is not installed; it is in the extra 'fast'")
    import numpy as np

    multiply_add, read, operations = ceilings._functions()
    factors = np.array([0.5, 1.0, 0.0], np.float32)
    multiply_add(factors.ctypes.data, 60)
    assert factors[2] == 2 * operations / 2  # each of the sums becomes y / (1 - x)
    array = np.arange(1024, dtype=np.float32)
    read(array.ctypes.data, array.size, 2)
    assert array[0] == 2 * 1023 * 1024 / 2


def test_each_shape_of_a_layer_is_measured_once() -> None:
    found = products.layers([TINY, DEEP, DEEP])
    assert [(each.letter, *each.layers) for each in found] == [
        ("T", 2, 16), ("T", 16, 16), ("T", 16, 1), ("D", 64, 64), ("D", 64, 10)
    ]  # fmt: skip


def test_products_are_checked_before_they_are_timed() -> None:
    layer = products.layers([DEEP])[0]
    assert all(seconds > 0 and math.isfinite(seconds) for seconds in products.NumpyBlas(layer).turn(0.001))
    assert all(seconds > 0 for seconds in products.Gradflow(layer).turn(0.001))

    class Wrong(products.NumpyBlas):
        def prepared(self):  # type: ignore[no-untyped-def]
            forward, *gradients = super().prepared()
            return [lambda: forward() + 1, *gradients]

    with pytest.raises(AssertionError, match="a product is wrong"):
        Wrong(layer)
