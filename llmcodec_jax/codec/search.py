"""A quantiser's search as logits over its codes: what the native bridge samples from.

logits[b, t, v] = query . weight_v + bias_v, the largest being the code the quantiser chose. Only
differences between codes matter (softmax, argmax), so terms that all codes share are free: they are
chosen so that no logit of a code near the best is clipped by the bridge.

Shapes: B clips, T frames, V codes, d search width.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from llmcodec_jax.types import Search

SAMPLED_CODES = 256  # whose nearest neighbours measure how far apart codes are


class Logits(NamedTuple):
    """logits = query weight^T + bias, float32."""

    query: jax.Array  # [B, T, d']
    weight: jax.Array  # [V, d']
    bias: jax.Array  # [V]


def spacing(table: jax.Array) -> jax.Array:
    """Median squared distance between a code and its nearest other, over a sample: float32 [].

    table [V, d]. Codes that coincide with another count as zero apart and hardly move a median;
    where most do, the mean squared distance from the centre stands in. No gradient.
    """
    table = jax.lax.stop_gradient(table.astype(jnp.float32))
    table = table - table.mean(axis=0)
    size = table.shape[0]
    index = jnp.arange(0, size, max(size // SAMPLED_CODES, 1))
    squares = jnp.sum(jnp.square(table), axis=-1)
    products = jnp.einsum("ud,vd->uv", table[index], table, precision="highest")
    distance = squares[index][:, None] + squares - 2 * products
    distance = jnp.where(index[:, None] == jnp.arange(size), jnp.inf, distance)
    median = jnp.median(jnp.maximum(jnp.min(distance, axis=1), 0.0))
    floor = 1e-6 * jnp.mean(squares)
    return jnp.where(median > floor, median, jnp.maximum(jnp.mean(squares), 1e-12))


def search_logits(search: Search, query: jax.Array, codes: jax.Array, scale: float) -> Logits:
    """Logits -|query - code|^2 / scale of one level, up to a constant per frame.

    query [B, T, d], codes int [B, T] as chosen (they only centre the logits). `scale` is in units
    of `spacing`, the median squared distance of neighbouring codes, so that one value means the
    same for any codebook.
    """
    if search.metric not in ("cosine", "euclidean", "product"):
        raise ValueError(f"a search by {search.metric!r} is not known")
    unit = scale * spacing(search.table)
    if search.metric == "cosine":  # both sides have unit length
        table = search.table
        return Logits(query, table * (2.0 / unit), jnp.full(table.shape[0], -2.0 / unit))
    centre = jax.lax.stop_gradient(search.table.mean(axis=0))
    query, table = query - centre, search.table - centre
    squares = jnp.sum(jnp.square(table), axis=-1)
    # The chosen code's own logit becomes 0: raw distances would all lie beyond the clip.
    chosen = jnp.sum(query * table[codes], axis=-1) * 2 - squares[codes]
    offset = -jax.lax.stop_gradient(chosen)[..., None]
    weight = jnp.concatenate([2 * table, jnp.ones_like(table[:, :1])], axis=-1) / unit
    return Logits(jnp.concatenate([query, offset], axis=-1), weight, -squares / unit)
