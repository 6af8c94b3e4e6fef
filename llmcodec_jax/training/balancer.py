"""EnCodec's balancer: each loss on the decoded audio has a set share of the gradient, whatever its
scale (Defossez et al. 2022, arXiv 2210.13438, section 3.4, equation 5).

Published with a running mean of each gradient's norm; here it is the mean over the micro-batch,
so that the state holds nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

TINY = 1e-12  # of norms, so that a loss without gradient stays without


def term_gradients(
    losses: Callable[[jax.Array], tuple[dict[str, jax.Array], Any]], wav: jax.Array
) -> tuple[dict[str, jax.Array], Any]:
    """`losses(wav [B, N]) -> ({name: scalar}, aux)` -> ({name: its gradient [B, N]}, aux)."""
    values, pullback, aux = jax.vjp(losses, wav, has_aux=True)
    zeros = {name: jnp.zeros_like(value) for name, value in values.items()}
    ones = {name: jnp.ones_like(value) for name, value in values.items()}
    found = {name: pullback({**zeros, name: one})[0] for name, one in ones.items()}
    return found, aux


def balance(
    gradients: Mapping[str, jax.Array], weights: Mapping[str, Any], total: float
) -> jax.Array:
    """sum_i total * (w_i / sum_j w_j) * g_i / mean |g_i|: {name: [B, N]} -> [B, N].

    `total`: the norm of a clip's gradient where all agree. Norms are each clip's, their mean the
    batch's. Without any positive weight the result is zero.
    """
    whole = jnp.maximum(sum(jnp.asarray(weights[name], jnp.float32) for name in gradients), TINY)
    parts = []
    for name, gradient in gradients.items():
        norm = jnp.mean(jnp.linalg.norm(gradient.astype(jnp.float32), axis=-1))
        parts.append(gradient * (total * weights[name] / whole / (norm + TINY)))
    return sum(parts[1:], parts[0])
