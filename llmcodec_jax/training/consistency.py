"""Token consistency as an objective: what sounds the same is searched for at the same place.

    slice   a part of the clip coded alone: its context ends where it ends
    shift   the clip a few samples later or earlier
    noise   the clip under faint white noise

Liu et al. 2024 ("Analyzing and mitigating inconsistency in discrete audio tokens") draw a codec's
latents of such pairs together. Here it is the quantiser's queries, in units of the distance of
neighbouring codes, so that one weight means the same for any codebook; and of the pair only the
changed version moves. `evaluate consistency` measures what comes of it in codes.

Shapes: B clips, N samples, T frames, Q levels, d search width.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from llmcodec_jax.codec.search import spacing
from llmcodec_jax.training import metrics
from llmcodec_jax.training.language import shift
from llmcodec_jax.training.method import Method
from llmcodec_jax.types import Batch, CodecOutput, Losses

NAMES = ("consistency_slice", "consistency_shift", "consistency_noise")
"""The terms of `LossWeights` that this file computes."""


def encode_again(method: Method, params, batch_stats, batch: Batch) -> CodecOutput:
    """A second look at changed audio, as in training; it moves no running statistics."""
    output, _ = method.codec.apply(
        {"params": params, "batch_stats": batch_stats},
        batch.wav,
        batch.wav_length,
        domain=batch.domain if method.training.use_domains else None,
        train=method.train_norm,
        method="encode",
        mutable=["batch_stats"],
    )
    return output


def consistency_losses(
    method: Method, params, batch_stats, batch: Batch, output: CodecOutput, key: jax.Array
) -> Losses:
    """The wanted ones of NAMES as (sum over clips, clips); one more encoder pass for each.

    `output`: of the unchanged batch; it receives no gradient.
    """
    wanted = [term.name for term in method.terms if term.name in NAMES]
    variables = {"params": params, "batch_stats": batch_stats}
    losses = {}
    for name in wanted:
        changed, start = _changed(method, name, batch, jax.random.fold_in(key, NAMES.index(name)))
        again = encode_again(method, params, batch_stats, changed)
        expected = _frames_from(output, start, again.codes.shape[1])
        distance = query_distance(method, variables, again, jax.lax.stop_gradient(expected))
        losses[name] = metrics.per_item(distance, batch.wav_length > 0)
    return losses


def _changed(method: Method, name: str, batch: Batch, key) -> tuple[Batch, jax.Array]:
    """The changed batch, and each clip's frame of the original at which it starts, int32 [B]."""
    settings, hop = method.consistency, method.codec.hop
    start = jnp.zeros(batch.wav.shape[0], jnp.int32)
    if name == "consistency_shift":
        limit = round(settings.shift_seconds * method.codec.sample_rate)
        return dataclasses.replace(batch, wav=shift(batch.wav, key, limit)), start
    if name == "consistency_noise":
        valid = jnp.arange(batch.wav.shape[1]) < batch.wav_length[:, None]
        power = jnp.sum(jnp.square(batch.wav), axis=1) / jnp.maximum(batch.wav_length, 1)
        level = jnp.sqrt(power) * 10 ** (-settings.noise_db / 20)
        noise = level[:, None] * jax.random.normal(key, batch.wav.shape)
        return dataclasses.replace(batch, wav=batch.wav + noise * valid), start
    frames = -(-batch.wav_length // hop)
    size = max(round(settings.slice_share * batch.wav.shape[1] / hop), 1)
    room = jnp.maximum(frames - size, 0)
    start = jax.random.randint(key, start.shape, 0, room + 1)
    samples = start[:, None] * hop + jnp.arange(size * hop)
    wav = jnp.take_along_axis(batch.wav, jnp.minimum(samples, batch.wav.shape[1] - 1), axis=1)
    length = jnp.clip(batch.wav_length - start * hop, 0, size * hop)
    wav = jnp.where(jnp.arange(size * hop) < length[:, None], wav, 0.0)
    return dataclasses.replace(batch, wav=wav, wav_length=length), start


def _frames_from(output: CodecOutput, start: jax.Array, frames: int) -> CodecOutput:
    """So many frames of every clip from its `start` on; codes and query alone."""
    index = jnp.minimum(start[:, None] + jnp.arange(frames), output.codes.shape[1] - 1)

    def part(x):
        return jax.vmap(lambda clip, own: clip[own])(x, index)

    return dataclasses.replace(output, codes=part(output.codes), query=part(output.query))


def query_distance(
    method: Method, variables: dict, changed: CodecOutput, expected: CodecOutput
) -> jax.Array:
    """Squared distance of two versions' queries, a mean over levels and frames: float32 [B].

    In units of the median squared distance of neighbouring codes. A level counts where all before
    it chose the same codes: else what they left over cannot be the same.
    """
    total = weight = jnp.zeros(changed.frame_mask.shape)
    same = changed.frame_mask
    for q in range(method.codec.levels):
        table = method.codec.apply(variables, q, method="search").table
        apart = jnp.square(changed.query[:, :, q] - expected.query[:, :, q]).sum(axis=-1)
        total = total + same * apart / spacing(table)
        weight = weight + same
        same = same & (changed.level(q).codes == expected.level(q).codes)
    return total.sum(axis=1) / jnp.maximum(weight.sum(axis=1), 1)
