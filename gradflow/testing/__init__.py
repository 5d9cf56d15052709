"""For tests of programs and of backends: agreement, counting transfers, and a device that needs no hardware.

Importing this package makes the device `fake` known.
"""

from gradflow.backend.registry import register_backend
from gradflow.testing.counting import SyncError, Transfers, count_transfers, forbid_sync
from gradflow.testing.fake import Counts, FakeArray, FakeBackend
from gradflow.testing.tolerances import Agreement, assert_agree, compare, eps, host, product_bound, sum_bound, ulp_bound

__all__ = [
    "Agreement",
    "Counts",
    "FakeArray",
    "FakeBackend",
    "SyncError",
    "Transfers",
    "assert_agree",
    "compare",
    "count_transfers",
    "eps",
    "forbid_sync",
    "host",
    "product_bound",
    "sum_bound",
    "ulp_bound",
]

register_backend("fake", FakeBackend)
