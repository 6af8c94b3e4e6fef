"""Loops over blocks of a vocabulary, for operations too large to hold all codes at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def over_blocks(size: int, block: int, step: Callable[[Any, Any, int], Any], carry: Any) -> Any:
    """carry = step(carry, start, width) for consecutive blocks that cover [0, size).

    Whole blocks run in a compiled loop (`start` is traced, `width` static), the remainder
    after it.
    """
    block = min(block, size)
    whole = size // block
    carry = jax.lax.fori_loop(0, whole, lambda i, c: step(c, i * block, block), carry)
    return step(carry, whole * block, size % block) if size % block else carry
