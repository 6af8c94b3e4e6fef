"""Both players' gradients on one micro-batch (paper, figure 2).

    wav -> codec -> reconstruction, VQ, adversarial losses
             |
             +-> Gumbel bridge -> frozen LM -> future tokens, semantic alignment

Both players learn from the same forward passes: the codec's and the discriminators' pullbacks
are built once each and fed the cotangents of either player's loss.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from llmcodec_jax.codec.quantizer import code_counts
from llmcodec_jax.lm.heads import horizon_weights
from llmcodec_jax.losses import adversarial
from llmcodec_jax.losses.spectral import acoustic_losses
from llmcodec_jax.training import metrics
from llmcodec_jax.training.language import TextStates, language_losses, shift
from llmcodec_jax.training.method import Method
from llmcodec_jax.training.schedules import Phase
from llmcodec_jax.training.state import TrainState, stream
from llmcodec_jax.types import Batch, CodecOutput, Losses


def weighted_total(losses: Losses, weights: dict, counts: dict) -> jax.Array:
    """sum_i w_i * sum_i / count_i, with the counts of the whole (accumulated) batch."""
    terms = [
        weight * losses[name][0] / jnp.maximum(counts[name], 1)
        for name, weight in weights.items()
        if name in losses
    ]
    return sum(terms, jnp.zeros(()))


def step_weights(method: Method, step) -> dict:
    """name -> weight of every loss at a step, FTP split over its horizons (method.md 4)."""
    weights = method.weights.at(step, method.schedule)
    ftp = weights.pop("ftp")
    if method.lm:
        per_horizon = horizon_weights(method.lm.horizons)
        weights |= {f"ftp/{k}": ftp * w for k, w in enumerate(per_horizon, start=1)}
    return weights


def batch_counts(method: Method, batch: Batch) -> dict:
    """Valid elements per loss over the whole batch: known from the lengths before any forward
    pass, so that micro-batches with uneven padding add up to exactly the full-batch gradient."""
    clips = jnp.float32(batch.wav.shape[0])
    frames = -(-batch.wav_length // method.codec.hop)
    counts = dict.fromkeys(("vq", "adversarial", "feature_matching", "discriminator"), clips)
    counts |= dict.fromkeys(
        ("mel", "multi_scale_mel", "multi_resolution_stft", "complex_stft"), clips
    )
    counts |= {"bridge": frames.sum()}
    with_text = jnp.sum(batch.text_length > 0)
    counts |= {"sa_cosine": with_text, "sa_contrastive": with_text}
    if method.lm:
        for k in range(1, method.lm.horizons + 1):
            counts[f"ftp/{k}"] = jnp.sum(jnp.maximum(frames - (k - 1), 0))
    return counts


def run_codec(method: Method, params, batch_stats, batch: Batch, train: bool):
    """wav -> (CodecOutput, reconstruction [B, N], updated batch_stats)."""
    variables = {"params": params, "batch_stats": batch_stats}
    domain = batch.domain if method.use_domains and train else None
    (output, wav), changed = method.codec.apply(
        variables,
        batch.wav,
        batch.wav_length,
        domain=domain,
        train=train and method.train_norm,
        method="reconstruct",
        mutable=["batch_stats"],
    )
    return output, wav, changed.get("batch_stats", batch_stats)


def _encode_jittered(method: Method, params, batch_stats, batch: Batch, key):
    """The LM branch's own look at the audio, shifted by a few samples (method.md 4)."""
    output, _ = method.codec.apply(
        {"params": params, "batch_stats": batch_stats},
        shift(batch.wav, key, method.bridge.jitter),
        batch.wav_length,
        domain=batch.domain if method.use_domains else None,
        train=method.train_norm,
        method="encode",
        mutable=["batch_stats"],
    )
    return output


def codec_forward(method: Method, phase: Phase, state: TrainState, lm_params, batch, counts, key):
    """Builds params -> ((reconstruction, weighted losses), aux), the codec player's forward."""
    step = state.step
    weights = step_weights(method, step)

    def forward(params, batch_stats):
        codec = params["codec"] if phase.codec else jax.lax.stop_gradient(params["codec"])
        output, wav, new_stats = run_codec(method, codec, batch_stats, batch, train=True)
        per_clip = acoustic_losses(batch.wav, wav, batch.wav_length) | {"vq": output.vq_loss}
        losses = {
            name: metrics.per_item(values, batch.wav_length > 0)
            for name, values in per_clip.items()
        }
        histogram = code_histogram(output, method.codec.codebook_size)
        text = None
        if phase.lm:
            if method.bridge.jitter:
                jitter_key = stream(key, step, "jitter")
                output = _encode_jittered(method, codec, batch_stats, batch, jitter_key)
            table = method.codec.apply({"params": codec}, method="search").table
            spoken, text = language_losses(
                method,
                params,
                table,
                lm_params,
                output,
                batch,
                state.bank,
                state.code_share,
                stream(key, step, "bridge"),
                method.schedule.codec_gate(step),
                method.schedule.temperature(step),
            )
            losses |= spoken
        total = weighted_total(losses, weights, counts)
        return (wav, total), (losses, new_stats, text, histogram)

    return forward


def code_histogram(output: CodecOutput, codebook_size: int) -> jax.Array:
    """How often each first-level code occurs on valid frames, float32 [V]."""
    return code_counts(output.level(0).codes, output.frame_mask, codebook_size)


def adversarial_players(method: Method, state: TrainState, batch: Batch, fake, counts):
    """Both players' shares of the adversarial game from one real and one fake pass.

    Returns (discriminator gradients, cotangent of `fake`, losses).
    """
    weights = step_weights(method, state.step)

    def features(params, wav):
        return method.discriminators.apply({"params": params}, wav, batch.wav_length)

    kind = method.adversarial_kind
    real, pull_real, masks = jax.vjp(
        lambda p: features(p, batch.wav), state.discriminator, has_aux=True
    )
    made, pull_made, _ = jax.vjp(features, state.discriminator, fake, has_aux=True)

    def judge(real, made):
        losses = {"discriminator": adversarial.discriminator_loss(real, made, masks, kind)}
        return weighted_total(losses, {"discriminator": 1.0}, counts), losses

    def fool(made):
        losses = {
            "adversarial": adversarial.generator_loss(made, masks, kind),
            "feature_matching": adversarial.feature_matching_loss(real, made, masks),
        }
        return weighted_total(losses, weights, counts), losses

    (real_cotangent, made_cotangent), judged = jax.grad(judge, argnums=(0, 1), has_aux=True)(
        real, made
    )
    fooled_cotangent, fooled = jax.grad(fool, has_aux=True)(made)
    gradients = jax.tree.map(jnp.add, pull_real(real_cotangent)[0], pull_made(made_cotangent)[0])
    return gradients, pull_made(fooled_cotangent)[1], judged | fooled


class Gradients(NamedTuple):
    """What one micro-batch contributes to an update."""

    codec: dict  # gradient of TrainState.params
    discriminator: dict  # gradient of TrainState.discriminator, zeros while it rests
    losses: Losses  # every raw loss and accuracy as (sum, count)
    histogram: jax.Array  # float32 [V], codes of the main pass
    text: TextStates | None  # what the bank takes in


def player_gradients(
    method: Method, phase: Phase, state: TrainState, batch_stats, lm_params, batch, counts, key
) -> tuple[Gradients, dict]:
    """Gradients of both players and the codec's new running statistics.

    `counts` are those of the whole batch (see `batch_counts`); `key` is this micro-batch's.
    """
    forward = codec_forward(method, phase, state, lm_params, batch, counts, key)
    (fake, _), pullback, aux = jax.vjp(
        lambda params: forward(params, batch_stats), state.params, has_aux=True
    )
    losses, new_stats, text, histogram = aux
    judge_gradients = jax.tree.map(jnp.zeros_like, state.discriminator)
    fake_cotangent = jnp.zeros_like(fake)
    if phase.discriminator:
        judge_gradients, fake_cotangent, played = adversarial_players(
            method, state, batch, fake, counts
        )
        losses |= played
    (gradients,) = pullback((fake_cotangent, jnp.ones(())))
    return Gradients(gradients, judge_gradients, losses, histogram, text), new_stats
