"""Generation with a key-value cache: greedy, or sampling at a temperature.

The token rows are passed in, so the same loop writes text (`decoder.head_rows`) or audio codes
(the audio vocabulary's own rows).

Shapes: B items, S prompt positions, N new tokens, R token rows, H width.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from llmcodec_jax.lm.config import LMConfig
from llmcodec_jax.lm.decoder import Decoder, Params, make_context
from llmcodec_jax.lm.lora import LoRA


@functools.partial(jax.jit, static_argnames=("config", "steps", "temperature", "stop_id"))
def generate(
    config: LMConfig,
    params: Params,
    prompt: jax.Array,
    lengths: jax.Array,
    steps: int,
    *,
    embedding: jax.Array,
    head: jax.Array,
    key: jax.Array | None = None,
    temperature: float = 0.0,
    stop_id: int | None = None,
    lora: LoRA | None = None,
) -> jax.Array:
    """Continues each prompt by `steps` tokens.

    prompt [B, S, H] embeddings, right-padded; lengths int [B] valid positions (at least one).
    embedding and head [R, H] are the rows of the tokens that may be generated; ids count them.
    temperature 0 is greedy, otherwise `key` is needed. After `stop_id` an item repeats it.
    Returns ids int32 [B, steps].
    """
    if temperature > 0 and key is None:
        raise ValueError("sampling at a temperature needs a key")
    batch, prompt_length, _ = prompt.shape
    key = jax.random.key(0) if key is None else key
    cache = init_cache(config, batch, prompt_length + steps, params["embed"]["embedding"].dtype)
    positions = jnp.broadcast_to(jnp.arange(prompt_length), (batch, prompt_length))
    hidden, cache = advance(config, params, prompt, positions, cache, lora)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]

    def pick(hidden, step):
        logits = jnp.einsum("bh,rh->br", hidden.astype(jnp.float32), head.astype(jnp.float32))
        if temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        drawn = jax.random.categorical(jax.random.fold_in(key, step), logits / temperature)
        return drawn.astype(jnp.int32)

    def extend(carry, step):
        cache, ids, stopped = carry
        position = (lengths + step)[:, None]
        hidden, cache = advance(config, params, embedding[ids][:, None], position, cache, lora)
        following = pick(hidden[:, 0], step + 1)
        if stop_id is not None:
            stopped = stopped | (ids == stop_id)
            following = jnp.where(stopped, stop_id, following)
        return (cache, following, stopped), ids

    start = (cache, pick(last, 0), jnp.zeros(batch, bool))
    _, ids = jax.lax.scan(extend, start, jnp.arange(steps))
    return ids.T


def init_cache(config: LMConfig, batch: int, slots: int, dtype) -> dict[str, jax.Array]:
    """Empty keys and values, each [L, B, slots, kv_heads, head_dim]."""
    shape = (config.layers, batch, slots, config.kv_heads, config.head_dim)
    return {"key": jnp.zeros(shape, dtype), "value": jnp.zeros(shape, dtype)}


def advance(
    config: LMConfig,
    params: Params,
    embeds: jax.Array,
    positions: jax.Array,
    cache: dict[str, Any],
    lora: LoRA | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """Reads embeds [B, T, H] at `positions` int [B, T] -> (normed states [B, T, H], new cache).

    Each position's key and value go to the cache slot of that number. Padding written there
    stays invisible: a query sees slots up to its own position, and those are rewritten first.
    """
    embeds = embeds.astype(params["embed"]["embedding"].dtype)
    context = make_context(config, positions, slots=cache["key"].shape[2])
    variables: dict[str, Any] = {"params": params}
    if lora is not None:
        variables["lora"] = lora.weights
    adapter = LoRA() if lora is None else dataclasses.replace(lora, weights=None)
    model = Decoder(config, adapter)
    found: Any = model.apply(variables, embeds, context, cache, method="body")
    hidden, _, cache = found
    return hidden, cache
