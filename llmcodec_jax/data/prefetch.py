"""Batches on the device before the step asks for them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol


class Resumable(Protocol):
    """An iterator whose position can be told: `pipeline.Loader`."""

    def __next__(self) -> Any: ...

    def state(self) -> dict: ...


class Prefetcher:
    """Iterates over `put(batch)` of a loader, up to `size` ahead, in a thread of its own.

    `state()` belongs to the batches handed out, not to those waiting: taken before `next()`,
    it brings that very batch again. An error in the loader or in `put` is raised by the `next()`
    that would have returned the batch.
    """

    def __init__(self, loader: Resumable, put: Callable[[Any], Any], size: int = 2):
        """`put` moves a numpy batch to the device(s): a sharded `jax.device_put`, say."""
        self._loader, self._put = loader, put
        self._state = loader.state()
        self._queue: queue.Queue = queue.Queue(maxsize=max(1, size))
        self._stop = threading.Event()
        self._ended: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                item = (self._put(next(self._loader)), self._loader.state(), None)
            except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
                item = (None, None, error)
            while not self._stop.is_set():
                try:
                    self._queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if item[2] is not None:
                return

    def __iter__(self) -> Prefetcher:
        return self

    def __next__(self) -> Any:
        if self._ended is not None:
            raise self._ended
        if self._stop.is_set():
            raise RuntimeError("this prefetcher is closed")
        batch, state, error = self._queue.get()
        if error is not None:
            self._ended = error
            raise error
        self._state = state
        return batch

    def state(self) -> dict:
        """The loader's state after the last batch handed out."""
        return self._state

    def close(self) -> None:
        """Stops the thread and drops what waits. The loader stays open; close it yourself."""
        self._stop.set()
        self._thread.join()
        while not self._queue.empty():
            self._queue.get_nowait()

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def prefetch(loader: Resumable, put: Callable[[Any], Any], size: int = 2) -> Prefetcher:
    """Starts prefetching; see `Prefetcher`."""
    return Prefetcher(loader, put, size)
