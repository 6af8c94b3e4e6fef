"""The bridge (SPEC 3): how the language model's gradient crosses the discrete codes.

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

import functools

import flax.struct
import jax
import jax.numpy as jnp

from llmcodec_jax.blocks import over_blocks

MODES = ("gumbel", "ste", "detach")
LOGIT_LIMIT = 80.0


@flax.struct.dataclass
class BridgeOutput:
    """What the bridge tells the LM branch, per frame; mask padded frames when summing."""

    embeds: jax.Array  # [B, T, H], dtype of the embedding: the LM's input
    ids: jax.Array  # int32 [B, T], the codes that were picked
    nll: jax.Array  # float32 [B, T], cross-entropy of the noiseless logits against the labels
    agree: jax.Array  # bool [B, T], the best noiseless logit is the label (no gradient)


def native_logits(query: jax.Array, table: jax.Array, scale: float):
    """The quantiser's own search as (query, weight, bias): logits = -|query - code|^2 / scale.

    query [B, T, d] and table [V, d] are L2-normalised, so the best logit is the VQ code by
    construction; there is nothing to learn.
    """
    return query, table * (2.0 / scale), jnp.full(table.shape[0], -2.0 / scale)


def projection_logits(latent: jax.Array, params: dict[str, jax.Array]):
    """The published learned map W z + b as (query, weight, bias); latent [B, T, D]."""
    return latent, params["weight"], params["bias"]


def init_projection(key: jax.Array, width: int, size: int) -> dict[str, jax.Array]:
    """Random projection from `width` channels to `size` codes: {"weight" [V, D], "bias" [V]}."""
    limit = width**-0.5
    weight = jax.random.uniform(key, (size, width), minval=-limit, maxval=limit)
    return {"weight": weight, "bias": jnp.zeros(size)}


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
    chunk: int = 2048,
    dtype=jnp.float32,
) -> BridgeOutput:
    """The bridge fused with its logits and its cross-entropy; same gradients, no [B, T, V].

    query [B, T, D], weight [V, D], bias [V], embedding [V, H], labels int [B, T].
    logits = query weight^T + bias in float32, clamped to +-80. Code v's noise comes from
    fold_in(key, v): the result does not depend on `chunk`, nor on how clips are sharded.
    Products with the embedding run in `dtype`. Gradients reach query, weight, bias and
    embedding; in mode "detach" none reaches query, neither the LM's nor that of `nll`.
    """
    _check_mode(mode)
    if mode == "detach":
        query = jax.lax.stop_gradient(query)
    tensors = (query.astype(jnp.float32), weight.astype(jnp.float32), bias.astype(jnp.float32))
    temperature = jnp.asarray(temperature, jnp.float32)
    static = (mode, chunk, jnp.dtype(dtype))
    embeds, ids, nll, agree = _fused(static, *tensors, embedding, key, temperature, labels)
    return BridgeOutput(embeds, ids, nll, agree)


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"bridge mode {mode!r} is not one of {', '.join(MODES)}")


def _rows(table: jax.Array, start, width: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(table, start, width)


def _noise(key: jax.Array, start, width: int, shape: tuple[int, int]) -> jax.Array:
    """Gumbel noise of codes [start, start + width): float32 [B, T, width]."""
    keys = jax.vmap(lambda code: jax.random.fold_in(key, code))(start + jnp.arange(width))
    return jnp.moveaxis(jax.vmap(lambda k: jax.random.gumbel(k, shape))(keys), 0, -1)


def _chunk_logits(mode, query, weight, bias, key, temperature, start, width):
    """(clamped logits, scores, True where unclamped), each [B, T, width]."""
    raw = jnp.einsum(
        "btd,vd->btv", query, _rows(weight, start, width), precision=jax.lax.Precision.HIGHEST
    )
    raw = raw + _rows(bias, start, width)
    clean = jnp.clip(raw, -LOGIT_LIMIT, LOGIT_LIMIT)
    noise = _noise(key, start, width, query.shape[:2]) if mode == "gumbel" else 0.0
    return clean, (clean + noise) / temperature, jnp.abs(raw) <= LOGIT_LIMIT


@flax.struct.dataclass
class _Running:
    """Statistics of the columns seen so far, each [B, T] but the last."""

    score: jax.Array  # the best score, and its code
    code: jax.Array
    clean: jax.Array  # the best noiseless logit, and its code
    clean_code: jax.Array
    score_lse: jax.Array  # log-sum-exp of the scores
    clean_lse: jax.Array
    label: jax.Array  # the label's logit
    expected: jax.Array  # sum_v p_v E_v [B, T, H], or [B, T, 0] where nobody asks


def _scan_vocabulary(static, query, weight, bias, embedding, key, temperature, labels, soft):
    """One pass over the codes, like an online softmax; `soft` also averages the embedding."""
    mode, chunk, dtype = static
    lowest = jnp.full(query.shape[:2], -jnp.inf)
    zero = jnp.zeros(query.shape[:2], jnp.int32)
    width_out = embedding.shape[1] if soft else 0
    start_state = _Running(
        lowest, zero, lowest, zero, lowest, lowest, lowest,
        jnp.zeros((*query.shape[:2], width_out)),
    )  # fmt: skip

    def step(state: _Running, start, width: int) -> _Running:
        clean, scores, _ = _chunk_logits(mode, query, weight, bias, key, temperature, start, width)
        score_lse = jnp.logaddexp(state.score_lse, jax.nn.logsumexp(scores, axis=-1))
        expected = state.expected
        if soft:
            share = jnp.exp(scores - score_lse[..., None]).astype(dtype)
            rows = _rows(embedding, start, width).astype(dtype)
            found = jnp.einsum("btv,vh->bth", share, rows, preferred_element_type=jnp.float32)
            expected = expected * jnp.exp(state.score_lse - score_lse)[..., None] + found
        place = labels - start
        here = jnp.clip(place, 0, width - 1)[..., None]
        label = jnp.take_along_axis(clean, here, axis=-1)[..., 0]
        score, code = _better(state.score, state.code, scores, start)
        best, best_code = _better(state.clean, state.clean_code, clean, start)
        return _Running(
            score=score,
            code=code,
            clean=best,
            clean_code=best_code,
            score_lse=score_lse,
            clean_lse=jnp.logaddexp(state.clean_lse, jax.nn.logsumexp(clean, axis=-1)),
            label=jnp.where((place >= 0) & (place < width), label, state.label),
            expected=expected,
        )

    return over_blocks(weight.shape[0], chunk, step, start_state)


def _better(value, code, columns, start):
    """Running maximum and its place; the first code wins a tie, as in argmax."""
    place = jnp.argmax(columns, axis=-1)
    found = jnp.take_along_axis(columns, place[..., None], axis=-1)[..., 0]
    wins = found > value
    return jnp.where(wins, found, value), jnp.where(wins, place + start, code)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(static, query, weight, bias, embedding, key, temperature, labels):
    args = (static, query, weight, bias, embedding, key, temperature, labels)
    return _outputs(_scan_vocabulary(*args, soft=False), embedding, labels)


def _outputs(state: _Running, embedding, labels):
    nll = state.clean_lse - state.label
    return embedding[state.code], state.code, nll, state.clean_code == labels


def _fused_forward(static, query, weight, bias, embedding, key, temperature, labels):
    args = (query, weight, bias, embedding, key, temperature, labels)
    state = _scan_vocabulary(static, *args, soft=static[0] != "detach")
    statistics = (state.code, state.score_lse, state.clean_lse, state.expected)
    return _outputs(state, embedding, labels), (args, statistics)


def _fused_backward(static, residuals, cotangents):
    mode, chunk, dtype = static
    (query, weight, bias, embedding, key, temperature, labels), statistics = residuals
    code, score_lse, clean_lse, expected = statistics
    d_embeds, _, d_nll, _ = cotangents
    d_embeds32 = d_embeds.astype(jnp.float32)
    relaxed = mode != "detach"
    centre = jnp.sum(d_embeds32 * expected, axis=-1, keepdims=True) if relaxed else 0.0

    def step(carry, start, width: int):
        d_query, d_weight, d_bias = carry
        clean, scores, free = _chunk_logits(
            mode, query, weight, bias, key, temperature, start, width
        )
        is_label = labels[..., None] == start + jnp.arange(width)
        d_logits = d_nll[..., None] * (jnp.exp(clean - clean_lse[..., None]) - is_label)
        if relaxed:
            rows = _rows(embedding, start, width).astype(dtype)
            gain = jnp.einsum(
                "bth,vh->btv", d_embeds.astype(dtype), rows, preferred_element_type=jnp.float32
            )
            share = jnp.exp(scores - score_lse[..., None])
            d_logits = d_logits + share * (gain - centre) / temperature
        d_logits = jnp.where(free, d_logits, 0.0)
        if relaxed:
            d_query = d_query + jnp.einsum("btv,vd->btd", d_logits, _rows(weight, start, width))
        d_rows = jnp.einsum("btv,btd->vd", d_logits, query)
        d_weight = jax.lax.dynamic_update_slice_in_dim(d_weight, d_rows, start, axis=0)
        d_bias = jax.lax.dynamic_update_slice_in_dim(d_bias, d_logits.sum((0, 1)), start, axis=0)
        return d_query, d_weight, d_bias

    zeros = tuple(jnp.zeros_like(x) for x in (query, weight, bias))
    d_query, d_weight, d_bias = over_blocks(weight.shape[0], chunk, step, zeros)
    d_embedding = jnp.zeros(embedding.shape).at[code].add(d_embeds32).astype(embedding.dtype)
    return d_query, d_weight, d_bias, d_embedding, None, None, None


_fused.defvjp(_fused_forward, _fused_backward)
