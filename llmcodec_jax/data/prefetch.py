"""Batches on the device before the step asks for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol


class Resumable(Protocol):
    """An iterator whose position can be told: `pipeline.Loader`."""

    def __next__(self) -> Any: ...

    def state(self) -> dict: ...


class Prefetcher:
    """Iterates over `put(batch)` of a loader, up to `size` ahead, in a thread of its own.

    `state()` belongs to the batches handed out, not to those waiting: taken before `next()`,
    it brings that very batch again. An error in the loader or in `put` is raised by the `next()`
    that would have returned the batch, and by every later one.
    """

    def __init__(self, loader: Resumable, put: Callable[[Any], Any], size: int = 2):
        """`put` moves a numpy batch to the device(s): a sharded `jax.device_put`, say."""
        self._loader, self._put = loader, put
        self._state = loader.state()
        # One thread, so that batches are drawn one after the other, in order.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._waiting: deque[Future] = deque()
        for _ in range(max(1, size)):
            self._ask()

    def _ask(self) -> None:
        self._waiting.append(self._thread.submit(self._draw))

    def _draw(self) -> tuple[Any, dict]:
        return self._put(next(self._loader)), self._loader.state()

    def __iter__(self) -> Prefetcher:
        return self

    def __next__(self) -> Any:
        if not self._waiting:
            raise RuntimeError("this prefetcher is closed")
        batch, self._state = self._waiting[0].result()  # stays first if it raises
        self._waiting.popleft()
        self._ask()
        return batch

    def state(self) -> dict:
        """The loader's state after the last batch handed out."""
        return self._state

    def close(self) -> None:
        """Ends the thread and drops what waits. The loader stays open; close it yourself."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._waiting.clear()

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def prefetch(loader: Resumable, put: Callable[[Any], Any], size: int = 2) -> Prefetcher:
    """Starts prefetching; see `Prefetcher`."""
    return Prefetcher(loader, put, size)
