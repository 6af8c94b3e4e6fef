"""Losses as sums and counts, and the one place that divides them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax.types import Losses


def means(losses: Losses) -> dict[str, jax.Array]:
    """name -> sum / count; a term without valid elements is 0, not NaN."""
    return {
        name: jnp.where(count > 0, total / jnp.maximum(count, 1), 0.0)
        for name, (total, count) in losses.items()
    }


def per_item(values: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Per-clip values [B] -> (sum, count) over the clips that `valid` bool [B] marks."""
    return jnp.sum(jnp.where(valid, values, 0.0)), jnp.sum(valid)


def code_statistics(share: jax.Array | np.ndarray) -> dict[str, jax.Array]:
    """Use and entropy of the codes from their (unnormalised) shares [Q, V], means over levels.

    usage: fraction of codes with any share above a hundredth of uniform; entropy in nats. Several
    levels have rows of their own too ("code_entropy/0", ...).
    """
    p = share / jnp.maximum(share.sum(axis=-1, keepdims=True), 1e-9)
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.maximum(p, 1e-20)), 0.0), axis=-1)
    levels = {
        "code_usage": jnp.mean(p > 0.01 / share.shape[-1], axis=-1),
        "code_entropy": entropy,
        "code_perplexity": jnp.exp(entropy),
    }
    report = {name: jnp.mean(values) for name, values in levels.items()}
    if len(share) > 1:
        report |= {f"{n}/{q}": v for n, values in levels.items() for q, v in enumerate(values)}
    return report


def count_lately(before: jax.Array, counted: jax.Array, window: float) -> jax.Array:
    """Running counts of a codebook's codes, float32 [..., V], with those of one more step.

    What was counted `window * V` codes ago weighs 1 / e: as fast as a codebook of that size can be
    known, whatever the batch. A level that no clip used stays as it was.
    """
    new = counted.sum(axis=-1, keepdims=True)
    return before * jnp.exp(-new / (window * counted.shape[-1])) + counted


def finite(tree) -> jax.Array:
    """True where every leaf of the tree is finite.

    The leaves are counted by a product, which no kernel takes in: XLA:CPU would compute (and
    compile) all of it again in the kernel of every leaf that waits for the answer.
    """
    flags = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)])
    flags = flags.astype(jnp.float32)
    return flags @ jnp.ones_like(flags) > len(flags) - 0.5
