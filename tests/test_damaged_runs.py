"""Damaged and crafted files of a run: the config and the saved state give an error of ours, or what they hold."""

from __future__ import annotations

import contextlib
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.training import NonFiniteLossError, Settings, SettingsError
from gradflow.training.runs.folder import unfinished_config
from gradflow.training.runs.run import Run
from tests.mutations import changed_tree, mutants

for _package in ("sklearn", "safetensors", "tomli_w"):
    pytest.importorskip(_package)

CHECKPOINT = "checkpoint.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an ensemble that was stopped in its second model, with all that a state can hold."""
    path = tmp_path_factory.mktemp("runs") / "run"
    settings = Settings(
        "iris", device="cpu", hidden=(4,), epochs=3, ensemble=2, average=0.9, accumulate=2, clip_norm=1.0
    )
    run = Run.new(settings, path)
    with run:
        for _ in itertools.islice(run.steps(), 4):
            pass
        run.finish("interrupted")
    return path


def test_a_mutated_config_is_refused_in_one_line_or_is_one(folder: Path, tmp_path: Path, random_examples: Any) -> None:
    content, path = (folder / "config.toml").read_bytes(), tmp_path / "config.toml"
    (tmp_path / CHECKPOINT).touch()
    messages = []
    for what, mutant in mutants(content, random_examples(300).max_examples):
        path.write_bytes(mutant)
        try:
            settings = Settings(**unfinished_config(tmp_path)["settings"])
        except SettingsError as error:
            messages.append(str(error))
        else:
            assert isinstance(settings, Settings), what
    assert len(messages) > 30
    assert [m for m in messages if not m.isprintable() or len(m) > 1000] == []


def test_a_mutated_state_is_refused_in_one_line_or_is_the_same(
    folder: Path, tmp_path: Path, random_examples: Any
) -> None:
    content, path = (folder / CHECKPOINT).read_bytes(), tmp_path / CHECKPOINT
    run = Run.resumed(folder)
    with run:
        expected = gf.saving.to_bytes(run.members.state_dict())
        messages = []
        for what, mutant in mutants(content, random_examples(100).max_examples):
            path.write_bytes(mutant)
            try:
                run._load(path)
            except SettingsError as error:
                messages.append(str(error))
            else:
                assert gf.saving.to_bytes(run.members.state_dict()) == expected, what
    assert len(messages) > 50
    assert [m for m in messages if not m.isprintable() or not re.match("cannot go on from .+", m)] == []


@pytest.mark.slow
def test_a_crafted_state_is_refused_in_one_line_or_goes_on(folder: Path, tmp_path: Path, random_examples: Any) -> None:
    """It has a checksum that fits, so its numbers are believed where they are possible."""
    tree, path, random = gf.load(folder / CHECKPOINT), tmp_path / CHECKPOINT, np.random.default_rng(0)
    run = Run.resumed(folder)
    with run:
        messages = []
        for _ in range(random_examples(100).max_examples):
            try:
                gf.save(path, changed_tree(tree, random))
            except TypeError:  # some of the values are for no file
                continue
            try:
                run._load(path)
            except SettingsError as error:
                messages.append(str(error))
                continue
            with contextlib.suppress(NonFiniteLossError, ValueError):  # of numbers that are possible, but not in a run
                assert len(list(itertools.islice(run.members.steps(), 100))) < 100
                run.members.predictor(run.members.weights())
    assert len(messages) > 30
    assert [m for m in messages if not m.isprintable()] == []
