"""For tests of programs and of backends."""

from gradflow.testing.agreement import (
    Agreement,
    assert_agree,
    compare,
    eps,
    host,
    product_bound,
    sum_bound,
    ulp_bound,
)  # fmt: skip

__all__ = ["Agreement", "assert_agree", "compare", "eps", "host", "product_bound", "sum_bound", "ulp_bound"]
