"""The bridge (method.md 3): how the language model's gradient crosses the discrete codes.

Forward, every frame picks one code from `logits` and the LM reads that code's embedding row.
Backward, the pick is treated as softmax((logits + noise) / tau) @ embedding:

    gumbel   Gumbel noise in the pick: a sample at temperature tau
    ste      no noise: the best code, its relaxation straight through
    detach   the best code, and no gradient of any language loss to the codec

With p that softmax and g the gradient of the LM's input x = E[code]:

    d logits = p * (g E^T - <g, sum_v p_v E_v>) / tau        dE = scatter-add of g at the codes

`bridge` never holds more than `chunk` columns of p, so its memory is O(B T H), not O(B T V).

Shapes: B clips, T frames, D query width, V codes, H language-model width.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from llmcodec_jax.codec.search import Logits, search_logits
from llmcodec_jax.ops.blocks import over_blocks
from llmcodec_jax.types import CodecOutput, Search

MODES = ("gumbel", "ste", "detach")
LOGIT_LIMIT = 80.0
NOISE_BLOCK = 128  # codes whose noise shares a key; chunks are whole blocks


@flax.struct.dataclass
class BridgeOutput:
    """What the bridge tells the LM branch, per frame; mask padded frames when summing."""

    embeds: jax.Array  # [B, T, H], dtype of the embedding: the LM's input
    ids: jax.Array  # int32 [B, T], the codes that were picked
    nll: jax.Array  # float32 [B, T], cross-entropy of the noiseless logits against the labels
    agree: jax.Array  # bool [B, T], the best noiseless logit is the label (no gradient)
    entropy: jax.Array  # float32 [B, T], of the relaxation, in nats (no gradient)


class Relaxation(NamedTuple):
    """scores = (logits + noise * gumbel) / temperature, float32 scalars."""

    temperature: jax.Array
    noise: jax.Array


def scale_gradient(x: jax.Array, scale) -> jax.Array:
    """Identity forward; the gradient is multiplied by `scale`."""
    return scale * x + jax.lax.stop_gradient((1 - scale) * x)


@dataclasses.dataclass(frozen=True)
class Native:
    """The quantiser's own search: logits = -|query - code|^2 / scale (codec/search.py).

    The best logit is the VQ code by construction; there is nothing to learn.
    """

    scale: float  # in units of the median squared distance of neighbouring codes
    learned = False

    def init(self, key: jax.Array, width: int, size: int) -> dict[str, jax.Array]:
        """Its parameters: none."""
        return {}

    def noise(self, temperature):
        """Scale of the Gumbel noise: the picks sharpen with the temperature, at the scale of the
        quantiser's own distances, and so does the relaxation: softmax(logits / tau + gumbel)."""
        return temperature

    def __call__(self, params: dict, output: CodecOutput, search: Search, gate) -> Logits:
        """Single-level codec output and its search -> Logits; `gate` scales their gradient.

        All of it belongs to the codec, the codebook too.
        """
        made = search_logits(search, output.query[:, :, 0], output.codes, self.scale)
        return Logits(*(scale_gradient(x, gate) for x in made))


@dataclasses.dataclass(frozen=True)
class Projection:
    """The published learned map W z + b from the quantised latent."""

    learned = True

    def init(self, key: jax.Array, width: int, size: int) -> dict[str, jax.Array]:
        """Random start from `width` channels to `size` codes: {"weight" [V, D], "bias" [V]}."""
        limit = width**-0.5
        weight = jax.random.uniform(key, (size, width), minval=-limit, maxval=limit)
        return {"weight": weight, "bias": jnp.zeros(size)}

    def noise(self, temperature):
        """Scale of the Gumbel noise: as published, whatever the temperature."""
        return 1.0

    def __call__(self, params: dict, output: CodecOutput, search: Search, gate) -> Logits:
        """Codec output and own parameters -> Logits; `gate` scales the codec's gradient."""
        query = scale_gradient(output.quantised, gate)
        return Logits(query, params["weight"], params["bias"])


LOGITS = ("native", "projection")
"""What `bridge.logits` may name: `Native` and `Projection`."""


def projection_from_codes(vectors: jax.Array, scale: float = 1.0) -> dict[str, jax.Array]:
    """A projection that agrees with the quantiser from the first step.

    vectors [V, D]: every code's latent after the out projection (`codec.lookup(arange(V))`).
    Up to a constant per frame the logits are -|z - vector|^2 / (2 scale), largest at z's code.
    """
    bias = -0.5 * jnp.sum(jnp.square(vectors), axis=-1) / scale
    return {"weight": vectors / scale, "bias": bias}


def bridge_from_noise(logits, noise, embedding, temperature, mode: str) -> jax.Array:
    """The bridge in its plain form, as a reference and for small vocabularies.

    logits and noise float32 [B, T, V] (noise is read in mode "gumbel" only), embedding [V, H]
    -> embeds [B, T, H], differentiable in logits and embedding.
    """
    _check_mode(mode)
    scores = jnp.clip(logits.astype(jnp.float32), -LOGIT_LIMIT, LOGIT_LIMIT)
    if mode == "gumbel":
        scores = scores + noise
    embeds = embedding[jnp.argmax(scores, axis=-1)]
    if mode == "detach":
        return embeds
    soft = jax.nn.softmax(scores / temperature, axis=-1)
    # Zero in value, the relaxation in gradient; the embedding's own gradient is the gather's.
    relaxed = (soft - jax.lax.stop_gradient(soft)) @ jax.lax.stop_gradient(embedding)
    return embeds + relaxed.astype(embeds.dtype)


def bridge(
    query: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    embedding: jax.Array,
    key: jax.Array,
    temperature: jax.Array | float,
    *,
    mode: str,
    labels: jax.Array,
    noise: jax.Array | float = 1.0,
    chunk: int = 512,
    dtype=jnp.float32,
) -> BridgeOutput:
    """The bridge fused with its logits and its cross-entropy; same gradients, no [B, T, V].

    query [B, T, D], weight [V, D], bias [V], embedding [V, H], labels int [B, T].
    logits = query weight^T + bias in float32, clamped to +-80; `noise` scales the Gumbel noise
    that is added to them before both are divided by the temperature. It is drawn per block of 128
    codes from fold_in(key, block): the sample depends neither on `chunk` (rounded up to whole
    blocks) nor on how clips are sharded.
    Products with the embedding run in `dtype`. Gradients reach query, weight, bias and
    embedding; in mode "detach" none reaches query, neither the LM's nor that of `nll`.
    """
    _check_mode(mode)
    if mode == "detach":
        query = jax.lax.stop_gradient(query)
    tensors = (query.astype(jnp.float32), weight.astype(jnp.float32), bias.astype(jnp.float32))
    relaxation = Relaxation(jnp.asarray(temperature, jnp.float32), jnp.asarray(noise, jnp.float32))
    chunk = -(-chunk // NOISE_BLOCK) * NOISE_BLOCK
    static = (mode, chunk, jnp.dtype(dtype))
    return BridgeOutput(*_fused(static, *tensors, embedding, key, relaxation, labels))


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"bridge mode {mode!r} is not one of {', '.join(MODES)}")


def _rows(table: jax.Array, start, width: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(table, start, width)


def _noise(key: jax.Array, start, width: int, shape: tuple[int, int]) -> jax.Array:
    """Gumbel noise of codes [start, start + width), start a whole block: float32 [B, T, width]."""
    first, blocks = start // NOISE_BLOCK, -(-width // NOISE_BLOCK)
    keys = jax.vmap(lambda block: jax.random.fold_in(key, block))(first + jnp.arange(blocks))
    noise = jax.vmap(lambda k: jax.random.gumbel(k, (*shape, NOISE_BLOCK)))(keys)
    noise = jnp.moveaxis(noise, 0, 2).reshape(*shape, blocks * NOISE_BLOCK)
    return noise[..., :width]


def _chunk_logits(mode, query, weight, bias, key, relaxation, start, width):
    """(clamped logits, scores, True where unclamped), each [B, T, width]."""
    raw = jnp.einsum(
        "btd,vd->btv", query, _rows(weight, start, width), precision=jax.lax.Precision.HIGHEST
    )
    raw = raw + _rows(bias, start, width)
    clean = jnp.clip(raw, -LOGIT_LIMIT, LOGIT_LIMIT)
    scores = clean
    if mode == "gumbel":
        scores += relaxation.noise * _noise(key, start, width, query.shape[:2])
    return clean, scores / relaxation.temperature, jnp.abs(raw) <= LOGIT_LIMIT


@flax.struct.dataclass
class _Running:
    """Statistics of the columns seen so far, each [B, T]."""

    score: jax.Array  # the best score, and its code
    code: jax.Array
    clean: jax.Array  # the best noiseless logit, and its code
    clean_code: jax.Array
    score_lse: jax.Array  # log-sum-exp of the scores
    score_mean: jax.Array  # their mean under their softmax
    clean_lse: jax.Array
    label: jax.Array  # the label's logit


def _scan_vocabulary(static, query, weight, bias, key, relaxation, labels) -> _Running:
    """One pass over the codes, like an online softmax."""
    mode, chunk, _ = static
    lowest = jnp.full(query.shape[:2], -jnp.inf)
    none = jnp.zeros(query.shape[:2], jnp.int32)

    def step(state: _Running, start, width: int) -> _Running:
        clean, scores, _ = _chunk_logits(mode, query, weight, bias, key, relaxation, start, width)
        place = labels - start
        here = jnp.clip(place, 0, width - 1)[..., None]
        label = jnp.take_along_axis(clean, here, axis=-1)[..., 0]
        score, code = _better(state.score, state.code, scores, start)
        best, best_code = _better(state.clean, state.clean_code, clean, start)
        lse = jnp.logaddexp(state.score_lse, jax.nn.logsumexp(scores, axis=-1))
        mean = state.score_mean * jnp.exp(state.score_lse - lse)
        mean += jnp.sum(jnp.exp(scores - lse[..., None]) * scores, axis=-1)
        return _Running(
            score=score,
            code=code,
            clean=best,
            clean_code=best_code,
            score_lse=lse,
            score_mean=mean,
            clean_lse=jnp.logaddexp(state.clean_lse, jax.nn.logsumexp(clean, axis=-1)),
            label=jnp.where((place >= 0) & (place < width), label, state.label),
        )

    zero = jnp.zeros(query.shape[:2])
    start = _Running(lowest, none, lowest, none, lowest, zero, lowest, lowest)
    return over_blocks(weight.shape[0], chunk, step, start)


def _better(value, code, columns, start):
    """Running maximum and its place; the first code wins a tie, as in argmax."""
    found = jnp.max(columns, axis=-1)
    # Two plain reductions: several times faster on CPU than the paired one argmax compiles to.
    last = columns.shape[-1]
    place = jnp.min(jnp.where(columns == found[..., None], jnp.arange(last), last), axis=-1)
    wins = found > value
    return jnp.where(wins, found, value), jnp.where(wins, place + start, code)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(static, query, weight, bias, embedding, key, relaxation, labels):
    return _fused_forward(static, query, weight, bias, embedding, key, relaxation, labels)[0]


def _fused_forward(static, query, weight, bias, embedding, key, relaxation, labels):
    state = _scan_vocabulary(static, query, weight, bias, key, relaxation, labels)
    nll = state.clean_lse - state.label
    entropy = jnp.maximum(state.score_lse - state.score_mean, 0.0)
    outputs = embedding[state.code], state.code, nll, state.clean_code == labels, entropy
    residuals = (query, weight, bias, embedding, key, relaxation, labels)
    return outputs, (residuals, (state.code, state.score_lse, state.clean_lse))


def _fused_backward(static, residuals, cotangents):
    """Two passes: <g, sum_v p_v E_v> is only known at the end of the first.

    The first adds p * (g E^T) / tau and the cross-entropy's gradient, the second subtracts
    p * <..> / tau, which needs no product with the embedding.
    """
    mode, chunk, dtype = static
    (query, weight, bias, embedding, key, relaxation, labels), statistics = residuals
    code, score_lse, clean_lse = statistics
    temperature = relaxation.temperature
    d_embeds, _, d_nll, _, _ = cotangents

    def chunk_logits(start, width):
        return _chunk_logits(mode, query, weight, bias, key, relaxation, start, width)

    def gain(start, width):
        rows = _rows(embedding, start, width).astype(dtype)
        g = d_embeds.astype(dtype)
        return jnp.einsum("bth,vh->btv", g, rows, preferred_element_type=jnp.float32)

    def add(gradients, d_logits, start, width):
        d_query, d_weight, d_bias = gradients
        if mode != "detach":
            d_query += jnp.einsum("btv,vd->btd", d_logits, _rows(weight, start, width))
        d_rows = jnp.einsum("btv,btd->vd", d_logits, query) + _rows(d_weight, start, width)
        d_weight = jax.lax.dynamic_update_slice_in_dim(d_weight, d_rows, start, axis=0)
        d_columns = d_logits.sum((0, 1)) + _rows(d_bias, start, width)
        d_bias = jax.lax.dynamic_update_slice_in_dim(d_bias, d_columns, start, axis=0)
        return d_query, d_weight, d_bias

    def first(carry, start, width: int):
        gradients, centre = carry
        clean, scores, free = chunk_logits(start, width)
        is_label = labels[..., None] == start + jnp.arange(width)
        d_logits = d_nll[..., None] * (jnp.exp(clean - clean_lse[..., None]) - is_label)
        if mode != "detach":
            pull = jnp.exp(scores - score_lse[..., None]) * gain(start, width)
            centre += jnp.sum(pull, axis=-1, keepdims=True)
            d_logits += pull / temperature
        return add(gradients, jnp.where(free, d_logits, 0.0), start, width), centre

    def second(gradients, start, width: int):
        _, scores, free = chunk_logits(start, width)
        d_logits = -jnp.exp(scores - score_lse[..., None]) * centre / temperature
        return add(gradients, jnp.where(free, d_logits, 0.0), start, width)

    zeros = tuple(jnp.zeros_like(x) for x in (query, weight, bias))
    start = (zeros, jnp.zeros((*query.shape[:2], 1)))
    gradients, centre = over_blocks(weight.shape[0], chunk, first, start)
    if mode != "detach":
        gradients = over_blocks(weight.shape[0], chunk, second, gradients)
    d_embedding = jnp.zeros(embedding.shape).at[code].add(d_embeds.astype(jnp.float32))
    return *gradients, d_embedding.astype(embedding.dtype), None, None, None


_fused.defvjp(_fused_forward, _fused_backward)
