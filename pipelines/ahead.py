"""Work that is done a little ahead of where it is needed: reading, stitching and writing while the network computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], depth: int, *, threads: int = 1
) -> Generator[Result]:
    """function(item) for each item, in order, with at most `depth` done or under way before they are asked for.

    With one thread `function` is never called twice at once, and in the order of the items. `items` is gone through by
    whoever asks for the results, so that two of these make a chain: read in threads, compute here, write in a thread;
    whoever is slow holds up the others. What `function` raises is raised here; what is under way is then waited for,
    and what is not is left undone.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for left in waiting:
                left.cancel()
