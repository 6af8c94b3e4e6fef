"""One training step and one evaluation step: pure functions of state, frozen LM and batch."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from llmcodec_jax.losses import adversarial
from llmcodec_jax.losses.alignment import enqueue
from llmcodec_jax.ops.backend import turns_at_once
from llmcodec_jax.training import metrics
from llmcodec_jax.training.gradients import (
    Gradients,
    batch_counts,
    code_histogram,
    player_gradients,
    run_codec,
    step_weights,
)
from llmcodec_jax.training.language import Branch, language_losses
from llmcodec_jax.training.method import Method
from llmcodec_jax.training.optim import assign, norms, optimiser
from llmcodec_jax.training.schedules import Phase
from llmcodec_jax.training.state import TrainState, stream
from llmcodec_jax.types import Batch


def split(batch: Batch, parts: int) -> Batch:
    """[B, ...] -> [parts, B / parts, ...], each part spread over all of the batch's shards."""

    def leaf(x):
        if x.shape[0] % parts:
            raise ValueError(f"batch of {x.shape[0]} does not divide into {parts} micro-batches")
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(leaf, batch)


def gather_gradients(
    method: Method, phase: Phase, state: TrainState, lm_params, batch: Batch
) -> tuple[Gradients, dict]:
    """Gradients over the whole batch in `method.accumulate` micro-batches, by a scan."""
    key = jax.random.wrap_key_data(state.key)
    counts = batch_counts(method, batch)

    def one(batch_stats, part, key):
        return player_gradients(method, phase, state, batch_stats, lm_params, part, counts, key)

    if method.accumulate == 1:
        return one(state.batch_stats, batch, key)
    parts = split(batch, method.accumulate)
    first = jax.tree.map(lambda x: x[0], parts)
    shapes, _ = jax.eval_shape(one, state.batch_stats, first, key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes._replace(text=None))

    def body(carry, index_and_part):
        batch_stats, total = carry
        index, part = index_and_part
        gradients, batch_stats = one(batch_stats, part, jax.random.fold_in(key, index))
        total = jax.tree.map(jnp.add, total, gradients._replace(text=None))
        return (batch_stats, total), gradients.text

    (batch_stats, total), text = jax.lax.scan(
        body,
        (state.batch_stats, zeros),
        (jnp.arange(method.accumulate), parts),
        unroll=turns_at_once(method.accumulate),
    )
    if text is not None:  # undo the interleaving of `split`: back to the batch's own order
        text = text._replace(
            states=jnp.moveaxis(text.states, 0, 2).reshape(
                text.states.shape[1], -1, text.states.shape[-1]
            ),
            text_hash=text.text_hash.T.reshape(-1),
            valid=text.valid.T.reshape(-1),
        )
    return total._replace(text=text), batch_stats


def penalty(method: Method, params: dict, batch: Batch, key: jax.Array) -> jax.Array:
    """The R1 penalty of some clips, weighted up for its laziness (docs/method.md, section 6)."""

    judges = method.discriminators
    assert judges is not None, "a phase with discriminators in a run without"

    def discriminate(wav):
        return judges.apply({"params": params}, wav, batch.wav_length)

    total, count = adversarial.r1_penalty(
        discriminate, batch.wav, key, gamma=method.weights.r1, interval=method.game.r1_every
    )
    return total / count


def penalise(method: Method, state: TrainState, batch: Batch, gradients: dict) -> tuple[dict, dict]:
    """Adds the lazy R1 penalty's gradient, in micro-batches.

    Only steps of a phase with `penalty` call it. A conditional in one program for all steps would
    be 11 times slower on CPU: XLA brings convolutions into their fast form in the entry
    computation alone (docs/measurements.md).
    """
    key = stream(jax.random.wrap_key_data(state.key), state.step, "r1")
    gradient = jax.value_and_grad(functools.partial(penalty, method))
    if method.accumulate == 1:
        value, extra = gradient(state.discriminator, batch, key)
        return jax.tree.map(jnp.add, gradients, extra), {"loss/r1": value}

    def body(total, index_and_part):
        index, part = index_and_part
        found = gradient(state.discriminator, part, jax.random.fold_in(key, index))
        return jax.tree.map(lambda a, b: a + b / method.accumulate, total, found), None

    start = (jnp.zeros(()), gradients)
    parts = (jnp.arange(method.accumulate), split(batch, method.accumulate))
    turns = turns_at_once(method.accumulate)
    (value, gradients), _ = jax.lax.scan(body, start, parts, unroll=turns)
    return gradients, {"loss/r1": value}


def revive_codes(method: Method, state: TrainState, params, batch_stats, batch: Batch):
    """Every `revive_every` steps, dead codes move to where the encoder is -> (params, stats).

    At the first step of a codec from scratch all do: its codebook starts on the data.
    """

    def due():
        variables = {"params": params["codec"], "batch_stats": batch_stats}
        output, _, _ = run_codec(method, *variables.values(), batch, train=False)
        key = stream(jax.random.wrap_key_data(state.key), state.step, "revive")
        first = method.from_scratch & (state.step == 0)
        below = jnp.where(first, jnp.inf, method.training.revive_below)
        codec: Any = method.codec  # can do it: asked for when the run was built
        revived = codec.revive(variables, output, key, below)
        return params | {"codec": revived["params"]}, revived["batch_stats"]

    when = state.step % method.training.revive_every == 0
    return jax.lax.cond(when, due, lambda: (params, batch_stats))


def _report(method: Method, step, losses, weights) -> dict:
    """Raw and weighted losses and the schedule at this step, as "section/name" scalars."""
    means = metrics.means(losses)
    report = {(n if n.startswith("accuracy/") else f"loss/{n}"): v for n, v in means.items()}
    if method.lm and "accuracy/bridge_entropy" in report:
        report["bridge/effective_codes"] = jnp.exp(report.pop("accuracy/bridge_entropy"))
    report |= {f"weighted/{n}": w * means[n] for n, w in weights.items() if n in means}
    report |= {f"lr/{g.name}": g.rate(step, method.schedule) for g in method.groups}
    if method.lm:
        report["schedule/temperature"] = method.schedule.temperature(step)
        report["schedule/codec_gate"] = method.schedule.codec_gate(step)
    return report


class Update(NamedTuple):
    """One player's proposal for the next state."""

    changes: dict  # fields of TrainState
    norms: dict  # gradient norm before clipping, by group
    report: dict


def update_codec(
    method: Method, phase: Phase, state: TrainState, gradients: Gradients, batch_stats, batch: Batch
) -> Update:
    """Codec, bridge, audio rows and heads take a step; dead codes may move."""
    transform = optimiser(state.params, method.groups, method.schedule)
    updates, opt_state = transform.update(
        gradients.codec, state.opt_state, state.params, step=state.step
    )
    params = optax.apply_updates(state.params, updates)
    if method.training.revive_every and phase.codec:
        if not method.train_norm:  # else the codec has counted them itself
            codec: Any = method.codec  # as in revive_codes
            batch_stats = codec.count_codes(batch_stats, gradients.histogram)
        params, batch_stats = revive_codes(method, state, params, batch_stats, batch)
    sizes = norms(gradients.codec, assign(state.params, method.groups))
    changes = {"params": params, "batch_stats": batch_stats, "opt_state": opt_state}
    return Update(changes, sizes, {})


def update_discriminators(
    method: Method, phase: Phase, state: TrainState, gradients: dict, batch: Batch
) -> Update:
    """The discriminators take a step, every so often with the R1 penalty."""
    report = {}
    if phase.penalty:
        gradients, report = penalise(method, state, batch, gradients)
    group = method.discriminator_group
    transform = optimiser(state.discriminator, (group,), method.schedule)
    updates, opt_state = transform.update(
        gradients, state.discriminator_opt_state, state.discriminator, step=state.step
    )
    changes = {
        "discriminator": optax.apply_updates(state.discriminator, updates),
        "discriminator_opt_state": opt_state,
    }
    report["lr/discriminators"] = group.rate(state.step, method.schedule)
    return Update(changes, {"discriminators": optax.tree.norm(gradients)}, report)


def accept(state: TrainState, proposed: TrainState, ok: jax.Array) -> TrainState:
    """`proposed` where `ok`, else `state`; either way the step and the counters move on."""
    kept = jax.tree.map(lambda new, old: jnp.where(ok, new, old), proposed, state)
    return kept.replace(
        step=state.step + 1,
        skipped=state.skipped + ~ok,
        bad_streak=jnp.where(ok, 0, state.bad_streak + 1),
    )


def train_step(
    state: TrainState, lm_params, batch: Batch, *, method: Method, phase: Phase
) -> tuple[TrainState, dict]:
    """One update of both players -> (next state, scalar metrics).

    A step with a non-finite loss, gradient or updated parameter changes nothing but the counters.
    """
    gradients, batch_stats = gather_gradients(method, phase, state, lm_params, batch)
    report = _report(method, state.step, gradients.losses, step_weights(method, state.step))
    updates = [update_codec(method, phase, state, gradients, batch_stats, batch)]
    if phase.discriminator:
        players = gradients.discriminator
        updates.append(update_discriminators(method, phase, state, players, batch))
    changes, sizes = {}, {}
    for update in updates:
        changes |= update.changes
        sizes |= update.norms
        report |= update.report
    if gradients.text is not None and state.bank is not None:
        changes["bank"] = enqueue(state.bank, *gradients.text)
    counted = gradients.histogram.reshape(state.code_share.shape)
    window = method.bridge.frequency_window
    changes["code_share"] = metrics.count_lately(state.code_share, counted, window)
    moved = (changes["params"], changes.get("discriminator"), changes["batch_stats"])
    ok = metrics.finite((report, sizes, moved))
    after = accept(state, dataclasses.replace(state, **changes), ok)
    report |= {f"grad_norm/{name}": size for name, size in sizes.items()}
    report |= {f"codes/{k}": v for k, v in metrics.code_statistics(after.code_shares).items()}
    report |= {"skipped": after.skipped, "bad_streak": after.bad_streak}
    return after, report


def eval_step(state: TrainState, lm_params, batch: Batch, *, method: Method) -> dict:
    """Held-out batch -> {"wav" [B, N], "codes" [B, T], "histogram" [Q, V], "losses" (sum, count)}.

    No domain is given, all codes are open, the bridge samples without noise.
    """
    variables = {"params": state.params["codec"], "batch_stats": state.batch_stats}
    output, wav, _ = run_codec(method, *variables.values(), batch, train=False)
    losses = {"vq": metrics.per_item(output.vq_loss, batch.wav_length > 0)}
    if method.lm:
        branch = Branch(
            params=state.params,
            lm_params=lm_params,
            batch_stats=state.batch_stats,
            output=output,
            batch=batch,
            bank=state.bank,
            code_share=state.code_shares,
            key=stream(jax.random.wrap_key_data(state.key), 0, "eval"),
            gate=0.0,
            temperature=method.schedule.temperature_end,
        )
        spoken, _ = language_losses(method, branch, training=False)
        losses |= spoken
    return {
        "wav": wav,
        "codes": output.codes,
        "histogram": code_histogram(method, output),
        "losses": losses,
    }
