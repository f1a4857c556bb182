"""Work that overlaps: what comes next is fetched, and what is done is put away, in threads of their own.

Queues are bounded, so that memory is too. An error in a thread is raised in the caller's at a later item; whatever ends
the caller (Ctrl-C as well) ends the threads.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterator[T], depth: int = 2) -> Generator[T]:
    """Give the items of an iterator, which runs in a thread, up to ``depth`` items ahead of the caller.

    The iterator is never used by two threads at a time. Close this one, or use it up, to end the thread.
    """
    end = object()
    with ThreadPoolExecutor(1, "hetecd-ahead") as pool:
        fetched: deque[Future[T | object]] = deque(pool.submit(next, items, end) for _ in range(depth))
        try:
            while (item := fetched.popleft().result()) is not end:
                fetched.append(pool.submit(next, items, end))
                yield item  # type: ignore[misc]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def behind(call: Callable[[T], object], depth: int = 2) -> Iterator[Callable[[T], None]]:
    """Call a function in a thread, with at most ``depth`` items waiting: hands out what takes the next item.

    All that it took is done when the body is left, also where an error ends it.
    """
    with ThreadPoolExecutor(1, "hetecd-behind") as pool:
        waiting: deque[Future[object]] = deque()

        def put(item: T) -> None:
            while len(waiting) > depth:
                waiting.popleft().result()
            waiting.append(pool.submit(call, item))

        yield put
        for future in waiting:
            future.result()
