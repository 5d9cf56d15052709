"""The layers of columns, and the first module of a table's model, on the CuPy backend with an emulated CuPy.

This says nothing about a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from emulated_device import needs_compiler

import gradflow as gf
from tests.test_column_inputs import (  # noqa: F401
    test_captured_steps_of_a_table_give_the_same_bits,
    test_features_and_gradients_are_those_of_each_column,
)
from tests.test_column_layers import (  # noqa: F401
    test_a_trainer_refuses_indices_out_of_range_before_it_trains,
    test_captured_steps_give_the_same_bits,
    test_column_linear_is_a_layer_for_each_column,
    test_column_linear_starts_as_linear_does,
    test_embedding_is_pytorchs,
    test_embedding_starts_as_pytorchs_does,
    test_piecewise_linear_is_a_module_of_buffers,
    test_piecewise_linear_is_the_equation_of_the_paper,
)

pytestmark = needs_compiler


@pytest.fixture
def device(backend: Any) -> Iterator[str]:
    """The emulated device, current during the test."""
    with gf.use_device("emulated"):
        yield "emulated"
