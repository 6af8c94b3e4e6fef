"""The language branch: codec latents -> bridge -> frozen LM -> future tokens and alignment.

Gradients flow back through the frozen LM to the bridge and, through the gate, to the codec.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llmcodec_jax import bridge as bridging
from llmcodec_jax.lm import decoder
from llmcodec_jax.losses import alignment, ftp
from llmcodec_jax.losses.repeats import repeat_loss
from llmcodec_jax.ops.placement import keep_split_by_clip
from llmcodec_jax.training.method import Method
from llmcodec_jax.types import Batch, CodecOutput, LMOutput, Losses


class TextStates(NamedTuple):
    """What the bank takes in after an update."""

    states: jax.Array  # float32 [P, B, H]
    text_hash: jax.Array  # uint32 [B]
    valid: jax.Array  # bool [B]


def shift(wav: jax.Array, key, limit: int) -> jax.Array:
    """Shifts every clip [B, N] by its own offset in [-limit, limit] samples, zeros moving in."""
    offset = jax.random.randint(key, (wav.shape[0], 1), -limit, limit + 1)
    index = jnp.arange(wav.shape[1])[None, :] - offset
    moved = jnp.take_along_axis(wav, jnp.clip(index, 0, wav.shape[1] - 1), axis=1)
    return jnp.where((index >= 0) & (index < wav.shape[1]), moved, 0.0)


def noisy_labels(codes: jax.Array, key, share: float, codebook_size: int) -> jax.Array:
    """Replaces a share of the labels by uniform random codes (method.md 4)."""
    where_key, code_key = jax.random.split(key)
    replaced = jax.random.bernoulli(where_key, share, codes.shape)
    return jnp.where(replaced, jax.random.randint(code_key, codes.shape, 0, codebook_size), codes)


def read_audio(method: Method, lm_params, embeds: jax.Array, frame_mask: jax.Array) -> LMOutput:
    """Begin position + audio embeddings [B, T P, H] through the LM.

    hidden[:, s] has seen what stands before position s, and the state pooled for alignment is at
    the last one.
    """
    lm = method.lm
    assert lm is not None, "a phase with the LM in a run without"
    begin = decoder.embed_text(lm_params, jnp.full((embeds.shape[0], 1), lm.begin_token))
    positions = method.reading.positions(frame_mask.sum(axis=1))
    return decoder.forward(
        lm.architecture,
        lm_params,
        jnp.concatenate([begin, keep_split_by_clip(embeds.astype(begin.dtype))], axis=1),
        positions + 1,
        pool_layers=lm.architecture.aligned_layers if method.align else None,
        pool_position=positions,
        remat=lm.remat == "always",  # "auto" is decided where the step is compiled
    )


def text_buckets(limit: int) -> tuple[int, ...]:
    """Lengths at which transcripts of up to `limit` tokens are read: a quarter, half, all."""
    return tuple(sorted({max(limit // 4, 1), max(limit // 2, 1), limit}))


def read_text(method: Method, lm_params, batch: Batch) -> TextStates:
    """Transcripts through the same LM, without gradient, pooled at the last real token.

    The whole batch is read at the shortest of `text_buckets` that holds its longest transcript:
    most are far shorter than `data.max_text`, and padding costs as much as text.
    """
    lm = method.lm
    assert lm is not None, "a phase with the LM in a run without"
    length = jnp.maximum(batch.text_length, 1)

    def pooled(size: int) -> jax.Array:
        return decoder.forward(
            lm.architecture,
            lm_params,
            decoder.embed_text(lm_params, batch.text_ids[:, :size]),
            length,
            pool_layers=lm.architecture.aligned_layers,
            pool_position=length - 1,
            remat=False,
        ).pooled

    buckets = text_buckets(batch.text_ids.shape[1])
    smallest = jnp.searchsorted(jnp.array(buckets), jnp.max(length))
    read = jax.lax.switch(smallest, [functools.partial(pooled, size) for size in buckets])
    return TextStates(
        states=jax.lax.stop_gradient(read),
        text_hash=alignment.text_hash(batch.text_ids, batch.text_length),
        valid=batch.text_length > 0,
    )


class Branch(NamedTuple):
    """What the language branch reads at one step."""

    params: dict  # TrainState.params; the codec's as far as gradients may reach it
    lm_params: dict
    batch_stats: dict  # the codec's
    output: CodecOutput  # of the audio that the branch hears
    batch: Batch
    bank: alignment.Bank | None
    code_share: jax.Array  # float32 [Q, V], how often each code occurs
    key: jax.Array
    gate: jax.Array | float  # scales the gradient into the codec
    temperature: jax.Array | float  # of the bridge


def over_levels(body: Callable[[Any, Any], tuple], carry, levels):
    """`jax.lax.scan` over the first axis of `levels`, without a loop where there is one level."""
    if len(jax.tree.leaves(levels)[0]) > 1:
        return jax.lax.scan(body, carry, levels)
    carry, made = body(carry, jax.tree.map(lambda x: x[0], levels))
    return carry, jax.tree.map(lambda x: x[None], made)


def code_logits(method: Method, branch: Branch) -> bridging.Logits:
    """The bridge's logits over the codes of each level that is read, stacked [L, ...].

    A level's query is what the codec's hard choices at the levels before left over; the gate
    scales what of the logits' gradient is the codec's.
    """
    variables = {"params": branch.params["codec"], "batch_stats": branch.batch_stats}
    gate = 0.0 if method.bridge.mode == "detach" else branch.gate
    make, levels = method.bridge.logits_of(), method.reading.levels
    own = jax.tree.map(
        lambda x: x.reshape(levels, -1, *x.shape[1:]), branch.params.get("bridge", {})
    )
    found = []
    for q in range(levels):
        search = method.codec.apply(variables, q, method="search")
        params = jax.tree.map(operator.itemgetter(q), own)
        found.append(make(params, branch.output.level(q), search, gate))
    return jax.tree.map(lambda *level: jnp.stack(level), *found)


def bridge_levels(
    method: Method, branch: Branch, logits: bridging.Logits, key: jax.Array, mode: str
) -> bridging.BridgeOutput:
    """The bridge at every level -> embeds [B, T P, H], the LM's input; the rest [L, B, T]."""
    read, embedding = method.reading, branch.params["audio_embedding"]
    # Beyond any block of codes, whose noise the key itself draws (bridge.NOISE_BLOCK).
    keys = [key, *(jax.random.fold_in(key, 2**20 + q) for q in range(1, read.levels))]
    labels = jnp.moveaxis(branch.output.codes, -1, 0)
    batch, frames = labels.shape[1:]
    summed = read.places < read.levels
    total = jnp.zeros((batch, frames, embedding.shape[-1]), embedding.dtype) if summed else None

    def one(total, level):
        logits, rows, key, labels = level
        made = bridging.bridge(
            *logits,
            rows,
            key,
            branch.temperature,
            mode=mode,
            labels=labels,
            noise=method.bridge.logits_of().noise(branch.temperature),
            chunk=method.bridge.chunk,
        )
        if summed:
            return total + made.embeds, dataclasses.replace(made, embeds=None)
        return None, made

    rows = embedding.reshape(read.levels, -1, embedding.shape[-1])
    total, made = over_levels(one, total, (logits, rows, jnp.stack(keys), labels))
    embeds = total if summed else jnp.moveaxis(made.embeds, 0, 2).reshape(batch, -1, rows.shape[-1])
    return dataclasses.replace(made, embeds=embeds)


def target_gradient(
    method: Method, branch: Branch, logits: bridging.Logits, hidden: jax.Array
) -> jax.Array:
    """How the predicted codes themselves would lower the FTP loss -> [K] sums, each zero in value.

    As published, the loss's gradient reaches the codec through the codes that the LM *read*;
    here also through the code v that head k was to *predict*, relaxed as in the bridge (mode
    "ste", heads and `hidden` [B, T P, H] held fixed). Of two codes that serve the sound equally
    well the codec is drawn to the one with the larger gain

        log q_k(v | codes before) - beta log share_v

    over what is known without context, `share` being how often each code of the level occurs. At
    beta 1 that is the mutual information of code and context; without the second term the codec
    would fall for frequent codes and empty the others, and a larger beta holds the codes' entropy
    up.
    """
    read, heads = method.reading, branch.params["ftp_heads"]
    horizons, width = heads.shape[0], heads.shape[-1]
    size = heads.shape[1] // read.levels
    batch, frames = branch.output.frame_mask.shape
    states = jax.lax.stop_gradient(hidden).astype(jnp.float32)
    states = states.reshape(batch, frames, read.places, width)
    states = jnp.pad(states, ((0, 0), (horizons, 0), (0, 0), (0, 1)), constant_values=1.0)
    sources = ftp.sources(horizons, read.levels, read.places)
    by_level = jax.tree.map(lambda x: jnp.asarray(x).T, sources)

    def one(sums, level):
        q, logits, share, labels, (places, ahead) = level
        share = share / jnp.maximum(share.sum(), 1e-9)
        prior = jnp.log(0.9 * share + 0.1 / size)  # no code is infinitely surprising
        prior = jnp.tile(method.bridge.frequency_weight * prior[None, :, None], (horizons, 1, 1))
        rows = jax.lax.dynamic_slice_in_dim(heads, q * size, size, axis=1)
        rows = jax.lax.stop_gradient(jnp.concatenate([rows, -prior], axis=-1))
        bridged = bridging.bridge(
            *logits,
            rows.transpose(1, 0, 2).reshape(size, horizons * (width + 1)),
            jax.random.key(0),  # not read: there is no noise
            branch.temperature,
            mode="ste",
            labels=labels,
            chunk=method.bridge.chunk,
        )
        rows = bridged.embeds.reshape(batch, frames, horizons, width + 1)
        found = []
        for k in range(horizons):  # frame s is predicted from a state at s - ahead
            start = (0, horizons - ahead[k], places[k], 0)
            reader = jax.lax.dynamic_slice(states, start, (batch, frames, 1, width + 1))[:, :, 0]
            unread = jnp.arange(frames) < ahead[k]
            score = jnp.sum(jnp.where(unread[:, None], 0.0, reader) * rows[:, :, k], axis=-1)
            score = score - jax.lax.stop_gradient(score)
            found.append(-jnp.sum(score * branch.output.frame_mask))
        return sums + jnp.stack(found), None

    levels = (
        jnp.arange(read.levels),
        logits,
        branch.code_share[: read.levels],
        jnp.moveaxis(branch.output.codes, -1, 0),
        by_level,
    )
    # The rows, as large as the heads, are made again on the way back and not kept for each level.
    body = jax.checkpoint(one) if read.levels > 1 else one
    return over_levels(body, jnp.zeros(horizons), levels)[0]


def repeats(method: Method, branch: Branch, logits: bridging.Logits) -> Losses:
    """`repeat_loss` over all levels that are read."""
    mask, chunk = branch.output.frame_mask, method.bridge.chunk

    def one(total, level):
        own, codes = level
        found = repeat_loss(*own, codes, mask, branch.temperature, chunk)["repeats"]
        return jax.tree.map(jnp.add, total, found), None

    codes = jnp.moveaxis(branch.output.codes, -1, 0)
    zeros = (jnp.zeros(()), jnp.zeros(()))
    return {"repeats": over_levels(one, zeros, (logits, codes))[0]}


def language_losses(
    method: Method, branch: Branch, training: bool = True
) -> tuple[Losses, TextStates | None]:
    """All objectives of the LM branch, and the text states for the bank.

    Losses are sums and counts: "bridge", "ftp/k", "sa_cosine", "sa_contrastive"; accuracies come
    along the same way, as "accuracy/...". Terms of weight 0 are left out. With `training=False`
    the bridge samples without noise, labels are clean, and nothing is meant to be differentiated.
    """
    branch = branch._replace(output=method.reading.select(branch.output))
    output, mask = branch.output, branch.output.frame_mask
    wanted = {term.name for term in method.terms}
    sample_key, noise_key = jax.random.split(branch.key)
    logits = code_logits(method, branch)
    mode = method.bridge.mode if training else "detach"
    bridged = bridge_levels(method, branch, logits, sample_key, mode)
    read = read_audio(method, branch.lm_params, bridged.embeds, mask)
    count = mask.sum() * method.reading.levels
    picked = bridged.ids == jnp.moveaxis(output.codes, -1, 0)
    losses = {
        "accuracy/bridge": (jnp.sum(bridged.agree * mask), count),
        "accuracy/bridge_entropy": (jnp.sum(bridged.entropy * mask), count),
        "accuracy/bridge_sampled": (jnp.sum(picked * mask), count),
    }
    if "bridge" in wanted:
        losses["bridge"] = (jnp.sum(bridged.nll * mask), count)
    if "repeats" in wanted:
        losses |= repeats(method, branch, logits)
    if "ftp" in wanted:
        noise = method.bridge.label_noise if training else 0.0
        labels = noisy_labels(output.codes, noise_key, noise, method.codec.codebook_size)
        hidden = read.hidden[:, :-1]
        losses |= ftp.ftp_loss(hidden, branch.params["ftp_heads"], labels, mask)
        if training and method.bridge.target_gradient:
            extra = method.bridge.target_gradient * target_gradient(method, branch, logits, hidden)
            for k, added in enumerate(extra, start=1):
                total, count = losses[f"ftp/{k}"]
                losses[f"ftp/{k}"] = (total + added, count)
    lm, bank = method.lm, branch.bank
    if lm is None or bank is None:  # a run without alignment has no bank
        return losses, None
    text = read_text(method, branch.lm_params, branch.batch)
    aligned = alignment.alignment(
        read.pooled,
        text.states,
        text.text_hash,
        text.valid,
        bank,
        logit_scale=lm.logit_scale,
        smoothing=lm.smoothing,
    )
    kept = (n for n in aligned if n in wanted or n.startswith("accuracy/"))
    return losses | {name: aligned[name] for name in kept}, text
