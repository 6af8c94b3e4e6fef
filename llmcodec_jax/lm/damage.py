"""Model files that are damaged: whatever a format's library raises, one error names the file."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from llmcodec_jax.lm.config import ConfigError

DAMAGE = (
    *(OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError),
    *(EOFError, ZeroDivisionError, MemoryError, RecursionError, struct.error, SafetensorError),
)
"""What parsing a damaged file raises; only around the parsing itself, never around our own code."""


@contextlib.contextmanager
def damage_named(path: str | Path) -> Iterator[None]:
    """Turns what the block's parsing of `path` raises into a ConfigError that names the file."""
    try:
        yield
    except (ConfigError, FileNotFoundError):
        raise
    except DAMAGE as error:
        reason = f"{type(error).__name__}: {error}"[:300]
        raise ConfigError(f"{path}: damaged or no such model ({reason}); fetch it again") from error
