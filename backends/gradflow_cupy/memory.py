"""The peak of the memory in use, which CuPy's pool does not track."""

from __future__ import annotations

from typing import Any


class PeakCounter:
    """Counts the bytes that CuPy's pool allocates on one device in the thread that creates the counter.

    index: the number of the device. current: the bytes in use at the start. CuPy calls a hook for each allocation and
    release, which costs about a microsecond.
    """

    def __init__(self, cupy: Any, index: int, current: int) -> None:
        self.current = self.peak = current
        self.index = index
        counter = self

        class Hook(cupy.cuda.MemoryHook):  # type: ignore[misc]
            name = f"gradflow peak counter {id(counter)} of cuda:{index}"  # CuPy refuses duplicate names

            def malloc_postprocess(self, **event: Any) -> None:
                if event["device_id"] == counter.index and event["mem_ptr"]:
                    counter.current += event["mem_size"]
                    counter.peak = max(counter.peak, counter.current)

            def free_postprocess(self, **event: Any) -> None:
                if event["device_id"] == counter.index:
                    counter.current = max(counter.current - event["mem_size"], 0)

        self._hook = Hook()
        self._hook.__enter__()
