"""Semantic alignment (method.md 5): audio states drawn to their transcript's, away from others'.

The bank of negatives is functional state: `enqueue` returns a new one. Each aligned layer has
its own states, every utterance one slot. Written over global arrays, so that one device and
eight compute the same bank and the same loss.

Shapes: P aligned layers, B items, M slots, H language-model width, S text tokens.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from llmcodec_jax.types import Losses


@flax.struct.dataclass
class Bank:
    """First in, first out: the latest M transcripts' states at every aligned layer."""

    states: jax.Array  # float32 [P, M, H], L2-normalised where filled
    text_hash: jax.Array  # uint32 [M]
    filled: jax.Array  # bool [M]
    cursor: jax.Array  # int32 [], the slot that is written next


def init_bank(layers: int, size: int, width: int) -> Bank:
    """An empty bank of `size` slots for `layers` layers of `width` channels."""
    return Bank(
        states=jnp.zeros((layers, size, width)),
        text_hash=jnp.zeros(size, jnp.uint32),
        filled=jnp.zeros(size, bool),
        cursor=jnp.zeros((), jnp.int32),
    )


def text_hash(text_ids: jax.Array, text_length: jax.Array) -> jax.Array:
    """A transcript's identity: ids int [B, S], lengths [B] -> uint32 [B], blind to padding."""
    position = jnp.arange(text_ids.shape[1], dtype=jnp.uint32)
    mixed = _scramble(text_ids.astype(jnp.uint32) + jnp.uint32(0x9E3779B9) * (position + 1))
    valid = position < text_length[:, None].astype(jnp.uint32)
    total = jnp.sum(jnp.where(valid, mixed, 0), axis=1, dtype=jnp.uint32)
    return _scramble(total + text_length.astype(jnp.uint32))


def _scramble(x: jax.Array) -> jax.Array:
    """A bijection of uint32 whose every output bit depends on every input bit."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def enqueue(bank: Bank, states: jax.Array, text_hash: jax.Array, valid: jax.Array) -> Bank:
    """Puts the valid items' text states [P, B, H] into the next slots, in batch order.

    text_hash uint32 [B], valid bool [B]. Items that are not valid take no slot; of more valid
    items than slots the last ones stay. No gradient passes.
    """
    size = bank.filled.shape[0]
    arriving = jnp.cumsum(valid.astype(jnp.int32))
    total = arriving[-1]
    rank = arriving - 1
    kept = valid & (rank >= total - size)
    slot = jnp.where(kept, (bank.cursor + rank) % size, size)  # slot `size` does not exist
    states = normalise(jax.lax.stop_gradient(states.astype(jnp.float32)))
    return Bank(
        states=bank.states.at[:, slot].set(states, mode="drop"),
        text_hash=bank.text_hash.at[slot].set(text_hash, mode="drop"),
        filled=bank.filled.at[slot].set(True, mode="drop"),
        cursor=(bank.cursor + total) % size,
    )


def alignment(
    audio: jax.Array,
    text: jax.Array,
    text_hash: jax.Array,
    valid: jax.Array,
    bank: Bank,
    logit_scale: float = 5.0,
    smoothing: float = 0.1,
) -> Losses:
    """Cosine and contrastive alignment, uniform over layers; sums over items that have text.

    audio and text [P, B, H] pooled states, text_hash uint32 [B], valid bool [B]. The positive
    is the item's own transcript, the negatives are the bank's filled slots with another text.
    Returns "sa_cosine", "sa_contrastive" and "accuracy/retrieval": (sum, count). Retrieval is the
    share of layers whose best candidate is the item's own text, over items that have a
    negative. No gradient reaches `text` or the bank.
    """
    audio = normalise(audio.astype(jnp.float32))
    text = normalise(jax.lax.stop_gradient(text.astype(jnp.float32)))
    cosine = jnp.sum(audio * text, axis=-1)  # [P, B]
    candidate = bank.filled & (bank.text_hash != text_hash[:, None])  # [B, M]
    negative = jnp.einsum("pbh,pmh->pbm", audio, jax.lax.stop_gradient(bank.states))
    contrastive = _smoothed_nll(cosine, negative, candidate, logit_scale, smoothing)
    hardest = jnp.max(jnp.where(candidate, negative, -jnp.inf), axis=-1)
    best = jnp.mean(cosine > hardest, axis=0)
    comparable = valid & candidate.any(axis=-1)

    def over(mask, values):
        return jnp.sum(jnp.where(mask, values, 0.0)), mask.sum().astype(jnp.float32)

    return {
        "sa_cosine": over(valid, jnp.mean(1.0 - cosine, axis=0)),
        "sa_contrastive": over(valid, jnp.mean(contrastive, axis=0)),
        "accuracy/retrieval": over(comparable, best),
    }


def _smoothed_nll(positive, negative, candidate, scale: float, smoothing: float) -> jax.Array:
    """InfoNCE with label smoothing over the candidates that exist: [P, B]."""
    positive = scale * positive
    negative = jnp.where(candidate, scale * negative, -jnp.inf)
    lse = jnp.logaddexp(positive, jax.nn.logsumexp(negative, axis=-1))
    classes = 1 + candidate.sum(axis=-1)
    total = positive + jnp.sum(jnp.where(candidate, negative, 0.0), axis=-1)
    return lse - (1 - smoothing) * positive - smoothing * total / classes


def normalise(x: jax.Array) -> jax.Array:
    """Unit length over the last axis; zero stays zero, with a finite gradient."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-12))
