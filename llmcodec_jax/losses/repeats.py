"""The share of codes that repeat the one before, as the bridge's relaxation has it (method.md 4).

A code that says the last one again is easy to predict and says little. Where the codes themselves
are drawn to what the LM expects (`bridge.target_gradient`), a codec finds that way first.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from llmcodec_jax import bridge as bridging
from llmcodec_jax.types import Losses


def repeat_loss(
    query: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    codes: jax.Array,
    frame_mask: jax.Array,
    temperature: jax.Array | float,
    chunk: int,
) -> Losses:
    """How likely each code's relaxation makes the code of its level one frame before.

    Of one level: query [B, T, D'], weight [V, D'], bias [V] with logits = query weight^T + bias;
    codes int [B, T], frame_mask bool [B, T] (a prefix of each clip) -> {"repeats": (sum of
    softmax(logits_t / temperature)[code_t-1], frames with one before)}. Gradients reach query,
    weight and bias, never holding [B, T, V].
    """
    before = jnp.pad(codes, ((0, 0), (1, 0)))[:, :-1]
    made = bridging.bridge(
        query / temperature,
        weight,
        bias / temperature,
        jnp.zeros((len(weight), 1)),  # what is read does not matter here
        jax.random.key(0),  # not read: there is no noise
        1.0,
        mode="ste",
        labels=before,
        chunk=chunk,
    )
    valid = frame_mask & (jnp.arange(codes.shape[1]) > 0)
    return {"repeats": (jnp.sum(jnp.exp(-made.nll) * valid), valid.sum().astype(jnp.float32))}
