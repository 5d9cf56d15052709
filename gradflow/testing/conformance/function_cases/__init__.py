"""The cases of `test_array_functions`: calls of every array function, and how close to NumPy each must be.

Results must be exact where IEEE 754 or the nature of the function makes it so; within 4 ulp of the float64 value for
functions of one number; within K * eps * sum(|x|) for sums and products of K terms, and within
(20 + log2 K) * eps * sum(|x|) for sums of many terms.
"""

from gradflow.testing.conformance.function_cases.calls import ALL, Call, Native, Table
from gradflow.testing.conformance.function_cases.creation import add_creation
from gradflow.testing.conformance.function_cases.elementwise import add_elementwise
from gradflow.testing.conformance.function_cases.reductions import add_long_sums, add_reductions
from gradflow.testing.conformance.function_cases.shapes import add_shapes

__all__ = ["ALL", "CALLS", "Call", "Native"]

_table = Table()
for _add in (add_creation, add_elementwise, add_reductions, add_long_sums, add_shapes):
    _add(_table)
CALLS = list({str(call) + str(call.dtypes): call for call in _table.calls}.values())
"""The calls of every array function."""
