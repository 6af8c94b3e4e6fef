"""The decoder language model (method.md 2): Qwen3 and the Llama family, as Flax modules.

The modules hold the mathematics; the functions below them are what other rooms call. All of
them take `(config, params, ...)` with `params` a plain tree of stacked layers:

    embed/embedding [Vt, H]        blocks/attn/{q,k,v,o}_proj/kernel [L, in, out]
    norm/scale [H]                 blocks/attn/{q,k}_norm/scale [L, head_dim]   (Qwen3)
    lm_head/kernel [H, Vt] untied  blocks/mlp/{gate,up,down}_proj/kernel [L, in, out]
                                   blocks/{attn,mlp}_norm/scale [L, H]

Shapes: B items, T positions, H width, L layers, Vt text rows. Matrix products run in the
dtype of `params`; norms, rotary angles and the softmax in float32.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from llmcodec_jax.lm.config import LMConfig
from llmcodec_jax.lm.lora import Linear, LoRA
from llmcodec_jax.lm.rotary import rotary_angles, rotate
from llmcodec_jax.ops.placement import keep_split_by_clip
from llmcodec_jax.ops.remat import recomputing
from llmcodec_jax.types import LMOutput

Params = dict[str, Any]
ADDING = ("o_proj", "down_proj")  # the last of what a layer adds to its input


@flax.struct.dataclass
class Context:
    """What every layer shares: rotary tables, who may look at whom, where to pool."""

    cos: jax.Array  # float32 [B, T, head_dim]
    sin: jax.Array
    mask: jax.Array  # bool [B, 1, T, S], True where query t may see key s
    positions: jax.Array  # int32 [B, T]; modulo the slots of a cache, those that are written
    pool_position: jax.Array | None = None  # int32 [B]


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, computed in float32."""

    eps: float

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + self.eps)
        return x32.astype(x.dtype) * scale.astype(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and an optional key-value cache.

    The cache is that of all layers, {"key", "value"} [L, B, kv_heads, slots, head_dim], and
    `layer` this one's place in it: carried through the layers whole, it is written in place.
    """

    config: LMConfig
    lora: LoRA

    @nn.compact
    def __call__(self, x, context: Context, cache, layer):
        c = self.config
        batch, length, _ = x.shape

        def project(name, heads):
            y = Linear(heads * c.head_dim, c.attention_bias, self.lora, name=name)(x)
            return y.reshape(batch, length, heads, c.head_dim)

        query, key = project("q_proj", c.heads), project("k_proj", c.kv_heads)
        value = project("v_proj", c.kv_heads)
        if c.qk_norm:
            query = RMSNorm(c.norm_eps, name="q_norm")(query)
            key = RMSNorm(c.norm_eps, name="k_norm")(key)
        query = rotate(query, context.cos, context.sin)
        key = rotate(key, context.cos, context.sin)
        if cache is None:
            mixed = jax.nn.dot_product_attention(query, key, value, mask=context.mask)
        else:
            rows, slots = jnp.arange(batch)[:, None], context.positions % cache["key"].shape[3]
            place = (layer, rows, slice(None), slots)
            cache = {
                "key": cache["key"].at[place].set(key),
                "value": cache["value"].at[place].set(value),
            }
            mixed = _attend(query, cache["key"][layer], cache["value"][layer], context.mask)
        mixed = mixed.reshape(batch, length, c.heads * c.head_dim)
        return Linear(c.width, c.attention_bias, self.lora, name="o_proj")(mixed), cache


def _attend(query, key, value, mask):
    """query [B, T, heads, D], key and value [B, kv_heads, S, D], mask [B, 1, T, S] -> as query.

    Both products find a cache's keys and values as they lie in memory, heads first.
    """
    batch, length, heads, size = query.shape
    rows = jnp.swapaxes(query, 1, 2).reshape(batch, key.shape[1], -1, size)  # of a key head, G T
    scores = jnp.einsum("bnrd,bnsd->bnrs", rows, key, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, key.shape[1], -1, length, key.shape[2])
    scores = jnp.where(mask[:, :, None], scores * size**-0.5, -jnp.inf)
    share = jax.nn.softmax(scores).astype(value.dtype).reshape(*rows.shape[:3], -1)
    mixed = jnp.einsum("bnrs,bnsd->bnrd", share, value)
    return jnp.swapaxes(mixed.reshape(batch, heads, length, size), 1, 2)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    config: LMConfig
    lora: LoRA

    @nn.compact
    def __call__(self, x):
        c = self.config
        gate = Linear(c.ffn_width, c.mlp_bias, self.lora, name="gate_proj")(x)
        up = Linear(c.ffn_width, c.mlp_bias, self.lora, name="up_proj")(x)
        return Linear(c.width, c.mlp_bias, self.lora, name="down_proj")(nn.silu(gate) * up)


class Block(nn.Module):
    """One layer of the scan: carries x, the cache and its own place; emits what `collect` asks.

    That is of its **input**. Without a cache that and the place are None.
    """

    config: LMConfig
    lora: LoRA
    collect: str | None  # None, "pooled" ([B, H] at pool_position) or "all" ([B, T, H])

    @nn.compact
    def __call__(self, carry, context: Context):
        x, cache, layer = carry
        x = keep_split_by_clip(x)
        collected = None
        if self.collect == "all":
            collected = x
        elif self.collect == "pooled":
            collected = x[jnp.arange(x.shape[0]), context.pool_position].astype(jnp.float32)
        normed = RMSNorm(self.config.norm_eps, name="attn_norm")(x)
        mixed, cache = Attention(self.config, self.lora, name="attn")(normed, context, cache, layer)
        x = x + mixed
        normed = RMSNorm(self.config.norm_eps, name="mlp_norm")(x)
        x = x + MLP(self.config, self.lora, name="mlp")(normed)
        return (x, cache, None if layer is None else layer + 1), collected


class Decoder(nn.Module):
    """The whole model; `body` runs the layers on embeddings, `head` gives text logits."""

    config: LMConfig
    lora: LoRA = LoRA()
    collect: str | None = None
    remat: bool = False

    def setup(self):
        c = self.config
        self.embed = nn.Embed(c.vocab_size, c.width, embedding_init=nn.initializers.normal(0.02))
        self.blocks = nn.scan(
            recomputing(Block, self.remat),
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=c.layers,
        )(c, self.lora, self.collect)
        self.norm = RMSNorm(c.norm_eps)
        if not c.tied:
            self.lm_head = Linear(c.vocab_size, False, self.lora)

    def body(self, embeds, context: Context, cache=None):
        """embeds [B, T, H] -> (normed [B, T, H], collected per layer or None, cache)."""
        first = None if cache is None else jnp.int32(0)
        (x, cache, _), collected = self.blocks((embeds, cache, first), context)
        return self.norm(x), collected, cache

    def head(self, hidden):
        """normed [B, T, H] -> float32 [B, T, Vt]."""
        if self.config.tied:
            table = self.embed.embedding
            product = jnp.einsum("bth,vh->btv", hidden, table, preferred_element_type=jnp.float32)
            return product
        return self.lm_head(hidden).astype(jnp.float32)

    def __call__(self, ids):
        """ids [B, T] -> logits; touches every parameter, so `init` makes them all."""
        context = make_context(self.config, jnp.arange(ids.shape[1])[None].repeat(len(ids), 0))
        return self.head(self.body(self.embed(ids), context)[0])


def make_context(
    config: LMConfig, positions, lengths=None, slots=None, pool_position=None, segments=None
) -> Context:
    """Who may look at whom, and rotary tables for `positions` int32 [B, T].

    lengths [B] or None: keys at or past an item's length are invisible. slots: size of a ring of
    keys (a cache), position p in slot p modulo slots, default T keys at positions 0 to T - 1.
    segments int [B, T]: sequences packed into one row see only themselves; `positions` then count
    within each.
    """
    cos, sin = rotary_angles(config, positions)
    length = positions.shape[1]
    if slots is not None:
        keys = jnp.arange(slots)
        held = positions[:, :, None] - (positions[:, :, None] - keys) % slots
        # A slot that this very call writes over is gone for the earlier queries of the call.
        mask = (held >= 0) & (held + slots > positions[:, -1:, None])
    elif segments is not None:
        order = jnp.arange(length)
        mask = (order <= order[:, None]) & (segments[:, None, :] == segments[:, :, None])
    else:
        mask = jnp.arange(length) <= positions[:, :, None]
    if lengths is not None:
        mask = mask & (jnp.arange(length) < lengths[:, None, None])
    return Context(cos, sin, mask[:, None], positions, pool_position)


def init_params(config: LMConfig, key: jax.Array, dtype=jnp.float32) -> Params:
    """Random weights (normal 0.02, norms one). `jax.eval_shape` of this gives the shapes."""

    def build(key):
        params = Decoder(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"]
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    return jax.jit(build)(key)


def init_to_train(config: LMConfig, key: jax.Array) -> Params:
    """`init_params` for training from scratch: what a layer adds starts at a tenth, float32.

    Else it is several times as long as an embedding, much the same for every token, and hides
    which token it was: small decoders lose hundreds of steps by that (docs/measurements.md).
    """
    flat = flatten_dict(init_params(config, key))
    small = {path: 0.1 * leaf for path, leaf in flat.items() if path[-2] in ADDING}
    return unflatten_dict(flat | small)


def embed_text(params: Params, ids: jax.Array) -> jax.Array:
    """Text ids int [...] -> embeddings [..., H]."""
    return params["embed"]["embedding"][ids]


def head_rows(config: LMConfig, params: Params) -> jax.Array:
    """The output matrix as rows [Vt, H]: the input table where the model ties them."""
    return params["embed"]["embedding"] if config.tied else params["lm_head"]["kernel"].T


@functools.partial(jax.jit, static_argnums=0)
def hidden_states(config: LMConfig, params: Params, embeds, lengths=None) -> jax.Array:
    """All hidden states [L + 1, B, T, H] in Hugging Face order (the last after the norm).

    For analysis: training uses `forward`, which never stacks them.
    """
    normed, inputs = _run(config, params, embeds, lengths, collect="all")
    return jnp.concatenate([inputs, normed[None]])


@functools.partial(jax.jit, static_argnums=0)
def logits(config: LMConfig, params: Params, embeds, lengths=None) -> jax.Array:
    """embeds [B, T, H] -> text logits float32 [B, T, Vt]."""
    normed, _ = _run(config, params, embeds, lengths)
    scores: Any = Decoder(config).apply({"params": params}, normed, method="head")
    return scores


def forward(
    config: LMConfig,
    params: Params,
    embeds: jax.Array,
    lengths: jax.Array | None = None,
    *,
    pool_layers: tuple[int, int] | None = None,
    pool_position: jax.Array | None = None,
    remat: bool = True,
    lora: LoRA | None = None,
    dropout_key: jax.Array | None = None,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
) -> LMOutput:
    """The training pass: final states, and residual states at one position per item (method.md 5).

    embeds [B, T, H]; lengths [B] valid positions (None: T); `positions` and `segments` int [B, T]
    where rows are packed (`make_context`). `pool_layers` [start, stop) counts
    like `hidden_states` (0 is the input); `pool_position` int [B] defaults to the last valid
    position. Only [L, B, H] pooled states leave the scan; with `remat` each layer keeps just
    its input for the backward pass, else its products with weights too. Pass stop_gradient'ed
    `params` for a frozen model: then no weight gradient is computed. Raises ValueError for
    layers outside the model.
    """
    start, stop = pool_layers or (0, 0)
    if not 0 <= start <= stop <= config.layers:
        raise ValueError(f"pool_layers {pool_layers} outside the {config.layers} layers")
    batch, length, _ = embeds.shape
    if pool_position is None:
        pool_position = jnp.full(batch, length - 1) if lengths is None else lengths - 1
    pool_position = jnp.maximum(pool_position, 0)
    hidden, pooled = _run(
        config,
        params,
        embeds,
        lengths,
        collect="pooled" if pool_layers else None,
        pool_position=pool_position,
        remat=remat,
        lora=lora,
        dropout_key=dropout_key,
        positions=positions,
        segments=segments,
    )
    if pooled is None:
        pooled = jnp.zeros((0, batch, config.width), jnp.float32)
    return LMOutput(hidden=hidden, pooled=pooled[start:stop])


def _run(
    config,
    params,
    embeds,
    lengths,
    collect=None,
    pool_position=None,
    remat=False,
    lora=None,
    dropout_key=None,
    positions=None,
    segments=None,
):
    embeds = embeds.astype(params["embed"]["embedding"].dtype)
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(embeds.shape[1]), embeds.shape[:2])
    context = make_context(
        config, positions, lengths, pool_position=pool_position, segments=segments
    )
    variables, rngs = {"params": params}, {}
    if lora is not None:
        variables["lora"] = lora.weights
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
    adapter = LoRA() if lora is None else dataclasses.replace(lora, weights=None)
    model = Decoder(config, adapter, collect, remat)
    found: Any = model.apply(variables, embeds, context, method="body", rngs=rngs)
    normed, collected, _ = found
    return normed, collected
