"""Ranks that are threads of one process: a communicator as a third party would bring one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from gradflow.distributed import Communicator


class Group:
    """What threads share: the arrays of an exchange, in the order in which it was started."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier = size, threading.Barrier(size, timeout=60)
        self.given: dict[int, dict[int, Any]] = {}
        self.lock = threading.Condition()
        self.failed = False  # whether a rank has raised, for which the others need not wait


class ThreadRank(Communicator):
    """One of several threads. Sums are made in the order of the ranks, in each of them."""

    def __init__(self, group: Group, rank: int) -> None:
        self.rank, self.size = rank, group.size
        self._group, self._exchanges = group, 0
        self.sums: list[tuple[tuple[int, ...], str]] = []

    def start_sum(self, array: Any) -> Any:
        self.sums.append((array.shape, array.dtype.name))
        return _Sum(self._group, self._give(array), array)

    def _give(self, array: Any) -> int:
        number, self._exchanges = self._exchanges, self._exchanges + 1
        with self._group.lock:
            self._group.given.setdefault(number, {})[self.rank] = array.copy()
            self._group.lock.notify_all()
        return number

    def broadcast(self, array: Any, root: int = 0) -> None:
        array[...] = taken(self._group, self._give(array))[root]

    def barrier(self) -> None:
        self._group.barrier.wait()


class _Sum:
    def __init__(self, group: Group, number: int, array: Any) -> None:
        self.group, self.number, self.array = group, number, array

    def wait(self) -> None:
        first, *others = taken(self.group, self.number)
        total = first.copy()
        for other in others:
            total += other
        self.array[...] = total


def taken(group: Group, number: int) -> list[Any]:
    with group.lock:
        group.lock.wait_for(lambda: len(group.given[number]) == group.size or group.failed, timeout=60)
    assert len(group.given[number]) == group.size, "a rank is missing"
    arrays = [group.given[number][rank] for rank in range(group.size)]
    assert len({(x.shape, x.dtype) for x in arrays}) == 1, f"ranks exchange different arrays: {arrays}"
    return arrays


def run_ranks(size: int, work: Callable[[Communicator], Any]) -> list[Any]:
    """What `work` returns for each of so many ranks, each in a thread of its own. Raises the first error."""
    group, results, errors = Group(size), [None] * size, []

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadRank(group, rank))
        except BaseException as error:
            errors.append(error)
            with group.lock:
                group.failed = True
                group.lock.notify_all()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
