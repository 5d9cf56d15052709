"""Profiles: how long each operation takes on the host and the device, and what it launches and moves.

**What is measured.** The rest of gradflow makes calls of a few kinds through `gradflow.interception.measured`: an
operation, a module, a backward pass, a step of an optimizer, a replay of a captured step. While a thread is profiled,
its `ThreadProfiler` makes these calls and notes a `Span` for each; `visits` notes one for each node of a backward pass.
The functions of all backends are replaced by wrappers meanwhile (`wrappers`), so that the work outside of operations
is seen, too, and the launches and bytes of each call. A step thus runs as it does without a profile: no observer, the
fast paths, the same replays.

**When.** A span has two readings of the host's clock. A call of an asynchronous backend is also between two events of
its stream, which are read when the profile ends.

**Then** `rows` sums spans up, `table` prints rows, and `chrome` writes spans as a trace.
"""

from gradflow.profiling.profile import profile
from gradflow.profiling.profiles import Profile
from gradflow.profiling.rows import Row

__all__ = ["Profile", "Row", "profile"]
