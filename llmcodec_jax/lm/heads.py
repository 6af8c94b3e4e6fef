"""Future-token heads (method.md 4): K bias-free maps from the LM's state to the next K codes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def start_from(head_rows: jax.Array, horizons: int) -> jax.Array:
    """Audio head rows [V, H] -> heads [K, V, H], each a copy: none starts from noise."""
    return jnp.repeat(head_rows[None], horizons, axis=0)


def horizon_weights(horizons: int) -> np.ndarray:
    """w_k = (1/k) / sum_j (1/j) for k = 1..K, float32 [K], summing to one."""
    weights = 1.0 / np.arange(1, horizons + 1)
    return (weights / weights.sum()).astype(np.float32)
