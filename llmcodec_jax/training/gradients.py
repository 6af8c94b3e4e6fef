"""Both players' gradients on one micro-batch (paper, figure 2).

    wav -> codec -> reconstruction, VQ, adversarial losses
             |
             +-> Gumbel bridge -> frozen LM -> future tokens, semantic alignment

Both players learn from the same forward passes: the codec's and the discriminators' pullbacks
are built once each and fed the cotangents of either player's loss.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from llmcodec_jax.codec.quantizer import code_counts, draw_levels
from llmcodec_jax.losses import adversarial
from llmcodec_jax.losses.distillation import distillation_loss
from llmcodec_jax.losses.spectral import ACOUSTIC, acoustic_losses
from llmcodec_jax.training import metrics, terms
from llmcodec_jax.training.balancer import balance, term_gradients
from llmcodec_jax.training.consistency import consistency_losses, encode_again
from llmcodec_jax.training.language import Branch, TextStates, language_losses, shift
from llmcodec_jax.training.method import Method
from llmcodec_jax.training.schedules import Phase
from llmcodec_jax.training.state import TrainState, stream
from llmcodec_jax.types import Batch, CodecOutput, Losses


def step_weights(method: Method, step) -> dict:
    """name -> weight of every loss of the run at a step."""
    return terms.step_weights(method.weights, method.schedule, step, method.horizons)


def batch_counts(method: Method, batch: Batch) -> dict:
    """name -> valid elements of every loss over the whole batch."""
    return terms.batch_counts(
        method.weights, batch, method.codec.hop, method.reading, method.horizons
    )


def drawn_levels(method: Method, batch: Batch, key) -> jax.Array | None:
    """Quantiser dropout: how many levels each clip uses, int32 [B]; None without."""
    share = method.training.quantiser_dropout
    if not share:
        return None
    return draw_levels(key, batch.wav.shape[0], method.codec.levels, share)


def run_codec(method: Method, params, batch_stats, batch: Batch, train: bool, levels=None):
    """wav -> (CodecOutput, reconstruction [B, N], updated batch_stats); `levels`: drawn_levels."""
    variables = {"params": params, "batch_stats": batch_stats}
    options = {} if levels is None else {"levels": levels}
    domain = batch.domain if method.training.use_domains and train else None
    (output, wav), changed = method.codec.apply(
        variables,
        batch.wav,
        batch.wav_length,
        domain=domain,
        train=train and method.train_norm,
        method="reconstruct",
        mutable=["batch_stats"],
        **options,
    )
    return output, wav, changed.get("batch_stats", batch_stats)


def sound_losses(method: Method, batch: Batch, wav) -> Losses:
    """What the decoded audio is judged by without a second player."""
    wanted = {term.name for term in method.terms}
    per_clip = acoustic_losses(
        batch.wav,
        wav,
        batch.wav_length,
        sample_rate=method.codec.sample_rate,
        names=wanted & set(ACOUSTIC),
        **dataclasses.asdict(method.spectral),
    )
    valid = batch.wav_length > 0
    return {name: metrics.per_item(values, valid) for name, values in per_clip.items()}


def taught_loss(method: Method, params: dict, codec, batch_stats, batch: Batch, output) -> Losses:
    """How far the codec's first level, or its latent, is from what the teacher heard.

    `codec`: its parameters. The first level passes its gradient straight through to the latent.
    """
    if not any(term.name == "distillation" for term in method.terms):
        return {}
    student = output.latent
    if method.distillation.student == "first":
        codes = output.codes if output.codes.ndim == 2 else output.codes[..., :1]
        variables = {"params": codec, "batch_stats": batch_stats}
        first = method.codec.apply(variables, codes, method="lookup")
        student = student + jax.lax.stop_gradient(first - student)
    assert batch.features is not None, "a batch without its teacher's features"
    guess = student.astype(jnp.float32) @ params["distillation"]["kernel"]
    kind = method.distillation.kind
    values = distillation_loss(guess, batch.features, output.frame_mask, kind)
    return {"distillation": metrics.per_item(values, batch.wav_length > 0)}


def quantiser_losses(method: Method, batch: Batch, output: CodecOutput) -> Losses:
    """The quantiser's own loss, where it has a weight."""
    if not any(term.name == "vq" for term in method.terms):
        return {}
    return {"vq": metrics.per_item(output.vq_loss, batch.wav_length > 0)}


def balanced_sound(method: Method, batch: Batch, wav, counts) -> tuple[dict, Losses]:
    """Each acoustic loss's gradient by the audio, {name: [B, N]}, and the raw losses."""

    def means(wav):
        losses = sound_losses(method, batch, wav)
        return terms.averages(losses, counts), losses

    return term_gradients(means, wav)


def codec_forward(method: Method, phase: Phase, state: TrainState, lm_params, batch, counts, key):
    """Builds params -> ((reconstruction, weighted losses), aux), the codec player's forward."""
    step = state.step
    weights = step_weights(method, step)

    def forward(params, batch_stats):
        codec = params["codec"] if phase.codec else jax.lax.stop_gradient(params["codec"])
        levels = drawn_levels(method, batch, stream(key, step, "levels"))
        output, wav, new_stats = run_codec(method, codec, batch_stats, batch, True, levels)
        losses = quantiser_losses(method, batch, output)
        losses |= taught_loss(method, params, codec, new_stats, batch, output)
        whole = output
        if levels is not None and (method.reading.levels > 1 or method.consistent):
            whole = encode_again(method, codec, batch_stats, batch)  # with all levels
        unsteady_key = stream(key, step, "consistency")
        losses |= consistency_losses(method, codec, batch_stats, batch, whole, unsteady_key)
        if not method.training.balance:
            losses |= sound_losses(method, batch, wav)
        histogram = code_histogram(method, output, levels)
        text = None
        if phase.lm:
            if method.jitter:
                jitter_key = stream(key, step, "jitter")
                # The LM branch's own look at the audio, shifted by a few samples (method.md 4).
                moved = dataclasses.replace(batch, wav=shift(batch.wav, jitter_key, method.jitter))
                whole = encode_again(method, codec, batch_stats, moved)
            branch = Branch(
                params=params | {"codec": codec},
                lm_params=lm_params,
                batch_stats=batch_stats,
                output=whole,
                batch=batch,
                bank=state.bank,
                code_share=state.code_shares,
                key=stream(key, step, "bridge"),
                gate=method.schedule.codec_gate(step),
                temperature=method.schedule.temperature(step),
            )
            spoken, text = language_losses(method, branch)
            losses |= spoken
        total = terms.weighted_total(losses, weights, counts)
        return (wav, total), (losses, new_stats, text, histogram)

    return forward


def code_histogram(method: Method, output: CodecOutput, levels=None) -> jax.Array:
    """How often each code of each level occurs on valid frames that use it, float32 [Q, V]."""
    counted = []
    for q in range(method.codec.levels):
        mask = output.frame_mask
        if levels is not None:
            mask = mask & jnp.less(q, levels)[:, None]
        counted.append(code_counts(output.level(q).codes, mask, method.codec.codebook_size))
    return jnp.stack(counted)


def adversarial_players(method: Method, state: TrainState, batch: Batch, fake, counts):
    """Both players' shares of the adversarial game from one real and one fake pass.

    Returns (discriminator gradients, cotangent of `fake`, losses); with a balancer the cotangent
    is one for each loss by name, without its weight.
    """
    weights = step_weights(method, state.step)
    judges = method.discriminators
    assert judges is not None, "a phase with discriminators in a run without"

    def features(params, wav):
        return judges.apply({"params": params}, wav, batch.wav_length)

    kind = method.game.loss
    real, pull_real, masks = jax.vjp(
        lambda p: features(p, batch.wav), state.discriminator, has_aux=True
    )
    made, pull_made, _ = jax.vjp(features, state.discriminator, fake, has_aux=True)

    def discriminator_objective(real, made):
        losses = {"discriminator": adversarial.discriminator_loss(real, made, masks, kind)}
        return terms.weighted_total(losses, {"discriminator": 1.0}, counts), losses

    def codec_objective(made):
        wanted = {term.name for term in method.terms}
        losses = {}
        if "adversarial" in wanted:
            losses["adversarial"] = adversarial.generator_loss(made, masks, kind)
        if "feature_matching" in wanted:
            losses["feature_matching"] = adversarial.feature_matching_loss(real, made, masks)
        terms.check_losses(losses, method.weights, ("discriminator",), method.horizons)
        if method.training.balance:
            return terms.averages(losses, counts), losses
        return terms.weighted_total(losses, weights, counts), losses

    (real_cotangent, made_cotangent), own = jax.grad(
        discriminator_objective, argnums=(0, 1), has_aux=True
    )(real, made)
    gradients = jax.tree.map(jnp.add, pull_real(real_cotangent)[0], pull_made(made_cotangent)[0])
    if method.training.balance:
        by_name, others = term_gradients(codec_objective, made)
        cotangent = {name: pull_made(gradient)[1] for name, gradient in by_name.items()}
    else:
        codec_cotangent, others = jax.grad(codec_objective, has_aux=True)(made)
        cotangent = pull_made(codec_cotangent)[1]
    return gradients, cotangent, own | others


class Gradients(NamedTuple):
    """What one micro-batch contributes to an update."""

    codec: dict  # gradient of TrainState.params
    discriminator: dict  # gradient of TrainState.discriminator, zeros while it rests
    losses: Losses  # every raw loss and accuracy as (sum, count)
    histogram: jax.Array  # float32 [Q, V], codes of the main pass
    text: TextStates | None  # what the bank takes in


def _check(method: Method, phase: Phase, losses: Losses) -> None:
    """That the codec's and the LM's losses are those with a weight. Raises ValueError."""
    parts = ("codec", "lm", "alignment") if phase.lm else ("codec",)
    terms.check_losses(losses, method.weights, parts, method.horizons)


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
    discriminator_gradients = jax.tree.map(jnp.zeros_like, state.discriminator)
    by_name, cotangent = {}, jnp.zeros_like(fake)
    if method.training.balance:
        by_name, heard = balanced_sound(method, batch, fake, counts)
        losses |= heard
    _check(method, phase, losses)
    if phase.discriminator:
        discriminator_gradients, cotangent, played = adversarial_players(
            method, state, batch, fake, counts
        )
        losses |= played
    if method.training.balance:
        by_name |= cotangent if phase.discriminator else {}
        cotangent = balance(by_name, step_weights(method, state.step), method.training.balance)
    (gradients,) = pullback((cotangent, jnp.ones(())))
    return Gradients(gradients, discriminator_gradients, losses, histogram, text), new_stats
