"""Runs an iterator ahead in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def ahead(items: Iterable[Item], count: int = 1) -> Iterator[Item]:
    """Yields the items; a thread makes up to `count` of them while an earlier one is in use.

    An exception raised while making an item is raised in place of the item.
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as worker:
        waiting = deque(worker.submit(next, iterator, end) for _ in range(count))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(worker.submit(next, iterator, end))
            yield item
