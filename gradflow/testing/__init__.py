"""Tools for testing programs and backends: comparison with a reference, counting of transfers, a fake device.

Importing this package registers the device `fake`.
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
