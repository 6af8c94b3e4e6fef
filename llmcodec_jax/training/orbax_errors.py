"""What Orbax's errors mean, and without the tracebacks that its threads print beside them."""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
from collections.abc import Iterator

MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""What a file that is gone raises: damage. Any other OSError may pass by itself."""

PASSING = (
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "ABORTED",
    "Input/output error",
    "Stale file handle",
    "Too many open files",
)
"""How TensorStore's messages name troubles that say nothing about the files themselves."""


def reason(error: Exception, length: int = 200) -> str:
    """One line: the end of the first, because TensorStore tells the cause last."""
    cause = error.__cause__ or error
    text = (str(cause).splitlines() or [type(cause).__name__])[0]
    text = text.partition(" [source locations=")[0]
    return text if len(text) <= length else f"... {text[-length:]}"


def may_pass(error: Exception) -> bool:
    """Whether the files may be whole, and reading them may succeed another time."""
    cause = error.__cause__ or error
    system = isinstance(cause, OSError) and not isinstance(cause, MISSING)
    return system or any(word in str(cause) for word in PASSING)


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Without the tracebacks of futures that nobody asks any more: the error itself is raised."""
    hooks = sys.unraisablehook, sys.excepthook
    sys.unraisablehook = sys.excepthook = lambda *_: None
    try:
        yield
    except Exception:
        gc.collect()  # now, while they are silent
        raise
    finally:
        sys.unraisablehook, sys.excepthook = hooks


class _RaisedAnyway(logging.Filter):
    """Drops what Orbax's threads log of errors that `finish` raises."""

    def filter(self, record: logging.LogRecord) -> bool:
        told = record.getMessage()
        return not ("orbax" in record.pathname or "orbax" in told or "OCDBT" in told)


for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(_RaisedAnyway())
