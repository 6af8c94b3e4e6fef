"""A speech LM as the training loop sees it: its state, one step, held-out loss."""

from __future__ import annotations

import dataclasses
import functools
import logging
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from llmcodec_jax.lm import decoder, heads, vocab
from llmcodec_jax.lm.config import LMConfig
from llmcodec_jax.lm.frames import level_heads, sum_rows
from llmcodec_jax.lm.lora import LoRA, init_lora
from llmcodec_jax.losses.ftp import fused_linear_cross_entropy
from llmcodec_jax.speech_lm.batches import PackedBatch
from llmcodec_jax.speech_lm.config import SpeechConfig, SpeechLM
from llmcodec_jax.speech_lm.template import Vocabulary
from llmcodec_jax.training import metrics, sharding
from llmcodec_jax.training.loop import Run, Task
from llmcodec_jax.training.optim import Group, assign, norms, optimiser
from llmcodec_jax.training.schedules import Phase, Schedule
from llmcodec_jax.training.state import stream
from llmcodec_jax.training.step import accept
from llmcodec_jax.types import Losses

logger = logging.getLogger(__name__)

TARGETS = r"(q|k|v|o|gate|up|down)_proj"
"""Linear layers that LoRA adapts."""


@dataclasses.dataclass(frozen=True)
class SpeechMethod:
    """Everything about a run that is fixed when the step is compiled."""

    lm: SpeechLM
    vocabulary: Vocabulary
    schedule: Schedule
    groups: tuple[Group, ...]
    writes_text: bool  # whether text tokens are predicted too (chat)
    max_bad_steps: int = 20

    @property
    def frozen(self) -> bool:
        """Whether the decoder's own weights stay as they are."""
        return self.lm.tune == "lora"

    def phase(self, step: int) -> Phase:
        """One for the whole run."""
        return Phase(codec=False, discriminator=False, lm=True)

    @classmethod
    def from_config(
        cls, config: SpeechConfig, vocabulary: Vocabulary, found: LMConfig | None
    ) -> SpeechMethod:
        """The method of a run, under the architecture of the LM that was found, if any."""
        lm = dataclasses.replace(config.lm, config=found) if found else config.lm
        return cls(
            lm=lm,
            vocabulary=vocabulary,
            schedule=config.schedule,
            groups=tuple(config.optim.groups.values()),
            writes_text=config.task == "chat",
            max_bad_steps=config.optim.max_bad_steps,
        )


@flax.struct.dataclass
class SpeechState:
    """The checkpointed state. A frozen LM is no part of it: only its digest is kept."""

    step: jax.Array  # int32 []
    params: dict  # embedding [R, H], heads [K, R, H], and `body` (all weights) or `lora`
    opt_state: Any
    skipped: jax.Array  # int32 [], non-finite updates so far
    bad_streak: jax.Array  # int32 [], non-finite updates in a row
    key: jax.Array  # uint32 [2], the root key: never changes


def init_params(method: SpeechMethod, lm_params, key: jax.Array) -> dict:
    """Parameters that are trained; `lm_params` is a pretrained LM's, None from scratch."""
    body_key, row_key, lora_key = jax.random.split(key, 3)
    architecture, rows = method.lm.architecture, method.vocabulary.rows
    body = lm_params
    if body is None:
        body = decoder.init_to_train(architecture, body_key)
    table = body["embed"]["embedding"]
    kind = method.lm.rows_start if lm_params is not None else "normal"
    embedding = vocab.audio_embedding_init(table, rows, row_key, kind)
    head = vocab.audio_head_init(body, embedding, row_key, kind)
    params = {
        "embedding": embedding,
        "heads": heads.start_heads(head, method.lm.horizons, kind),
    }
    if method.frozen:
        adapters = init_lora(body, lora_key, method.lm.rank, targets=TARGETS)
        return params | {"lora": adapters.weights}
    return params | {"body": jax.tree.map(lambda x: x.astype(jnp.float32), body)}


def init_state(method: SpeechMethod, lm_params, seed: int) -> SpeechState:
    """The state before the first step; jit it (or `jax.eval_shape` it) to build it sharded."""
    key = jax.random.key(seed)
    params = init_params(method, lm_params, stream(key, 0, "init"))
    return SpeechState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimiser(params, method.groups, method.schedule).init(params),
        skipped=jnp.zeros((), jnp.int32),
        bad_streak=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(key),
    )


def adapter(lm: SpeechLM, params: dict) -> LoRA | None:
    """The trained adapters as the decoder takes them."""
    return LoRA(params["lora"], lm.alpha, lm.dropout) if "lora" in params else None


def embed(body: Any, embedding: jax.Array, ids: jax.Array) -> jax.Array:
    """Ids of codes, marks and text [B, L], or [B, L, Q] of stacked levels -> [B, L, H].

    Of stacked levels the rows add up; text stands in the first alone.
    """
    rows = len(embedding)
    first = ids if ids.ndim == 2 else ids[..., 0]
    own = sum_rows(embedding, ids[..., None] if ids.ndim == 2 else ids)
    text = decoder.embed_text(body, jnp.maximum(first - rows, 0))
    return jnp.where((first < rows)[..., None], own.astype(text.dtype), text)


def losses(
    method: SpeechMethod, params: dict, lm_params, batch: PackedBatch, dropout_key=None
) -> Losses:
    """Cross-entropy and accuracy of every head, as sums and counts over what is predicted.

    Head k at a position predicts the k-th token after it, where both are of one sequence. The
    further heads predict codes and marks alone.
    """
    body = lm_params if method.frozen else params["body"]
    output = decoder.forward(
        method.lm.architecture,
        body,
        embed(body, params["embedding"], batch.ids),
        remat=method.lm.remat == "always",
        lora=adapter(method.lm, params),
        dropout_key=dropout_key if method.frozen and method.lm.dropout else None,
        positions=batch.positions,
        segments=batch.segments,
    )
    if method.vocabulary.stacked:
        return _stacked_losses(method, params, output.hidden, batch)
    labels, valid = targets(batch, method.lm.horizons)
    rows, hidden = method.vocabulary.rows, output.hidden
    first = params["heads"][:1]
    if method.writes_text:
        text = decoder.head_rows(method.lm.architecture, body).astype(first.dtype)
        first = jnp.concatenate([first, text[None]], axis=1)
    else:
        valid = valid & (labels < rows)
    parts = [fused_linear_cross_entropy(hidden, first, labels[:1], valid[:1])]
    if method.lm.horizons > 1:
        ahead = valid[1:] & (labels[1:] < rows)
        parts.append(fused_linear_cross_entropy(hidden, params["heads"][1:], labels[1:], ahead))
        valid = jnp.concatenate([valid[:1], ahead])
    sums = jnp.concatenate([part[0] for part in parts])
    correct = jnp.concatenate([part[1] for part in parts])
    counts = valid.sum((1, 2)).astype(jnp.float32)
    found: Losses = {}
    for k in range(method.lm.horizons):
        found[f"token/{k + 1}"] = (sums[k], counts[k])
        found[f"accuracy/{k + 1}"] = (correct[k], counts[k])
    return found


def _stacked_losses(method: SpeechMethod, params: dict, hidden, batch: PackedBatch) -> Losses:
    """Of levels that stand at one position: a code competes with those of its level alone."""
    labels, valid = targets(batch, 1)
    labels, valid = (jnp.moveaxis(x[0], -1, 0) for x in (labels, valid))  # [Q, B, L]
    words = method.vocabulary
    level = jnp.arange(words.levels)[:, None, None]
    mark = labels >= words.codes
    labels = jnp.where(mark, labels - words.codes + words.size, labels - level * words.size)
    heads = level_heads(params["heads"][0], words.levels, words.size)
    sums, correct = fused_linear_cross_entropy(hidden, heads, labels, valid)
    count = valid.sum().astype(jnp.float32)
    return {"token/1": (sums.sum(), count), "accuracy/1": (correct.sum(), count)}


def targets(batch: PackedBatch, horizons: int) -> tuple[jax.Array, jax.Array]:
    """-> (labels int32, valid bool), each [K, B, L] or [K, B, L, Q]: token t + k at position t."""
    length = batch.ids.shape[1]
    same = (slice(None), slice(None), *(None,) * (batch.ids.ndim - 2))

    def ahead(x, k):
        return jnp.pad(x, ((0, 0), (0, k), *((0, 0),) * (x.ndim - 2)))[:, k : k + length]

    steps = range(1, horizons + 1)
    labels = jnp.stack([ahead(batch.ids, k) for k in steps])
    valid = [
        ahead(batch.predicted, k) & (ahead(batch.segments, k) == batch.segments)[same]
        for k in steps
    ]
    return labels, jnp.stack(valid) & (batch.segments > 0)[same]


def head_weights(method: SpeechMethod) -> np.ndarray:
    """Weights of the heads' losses, float32 [K]: 1 for the first, `further_weight` for the rest,
    falling as those of future tokens do (method.md 4)."""
    further = heads.horizon_weights(method.lm.horizons)[1:]
    total = further.sum() if len(further) else 1.0
    return np.concatenate([[1.0], method.lm.further_weight * further / total]).astype(np.float32)


def speech_step(
    state: SpeechState, lm_params, batch: PackedBatch, *, method: SpeechMethod, phase: Phase
) -> tuple[SpeechState, dict]:
    """One update -> (next state, scalar metrics); the contract of `training.step.train_step`.

    A step with a non-finite loss, gradient or parameter changes nothing but the counters.
    """
    key = stream(jax.random.wrap_key_data(state.key), state.step, "dropout")
    weights = head_weights(method)

    def total(params):
        found = losses(method, params, lm_params, batch, key)
        means = metrics.means(found)
        return sum(w * means[f"token/{k + 1}"] for k, w in enumerate(weights)), found

    (loss, found), gradients = jax.value_and_grad(total, has_aux=True)(state.params)
    transform = optimiser(state.params, method.groups, method.schedule)
    updates, opt_state = transform.update(gradients, state.opt_state, state.params, step=state.step)
    params = optax.apply_updates(state.params, updates)
    sizes = norms(gradients, assign(state.params, method.groups))
    means = metrics.means(found)
    report = {f"loss/{n}" if n.startswith("token") else n: v for n, v in means.items()}
    report["loss/total"] = loss
    report |= {f"lr/{g.name}": g.rate(state.step, method.schedule) for g in method.groups}
    ok = jax.lax.optimization_barrier(metrics.finite((report, sizes, params)))
    before: Any = state  # `accept` asks for the fields that both kinds of state have
    after: Any = accept(before, before.replace(params=params, opt_state=opt_state), ok)
    report |= {f"grad_norm/{name}": size for name, size in sizes.items()}
    report["tokens"] = found["token/1"][1]
    report |= {"skipped": after.skipped, "bad_streak": after.bad_streak}
    return after, report


@functools.lru_cache(maxsize=2)
def _held_out_losses(method: SpeechMethod, mesh):
    def measure(params, lm_params, batch):
        return losses(method, params, lm_params, batch)

    return jax.jit(measure, out_shardings=sharding.replicated(mesh))


def evaluate_heldout(run: Run, state: SpeechState, step: int) -> float:
    """Nats a token and accuracies on the held-out sequences; writes the row, returns the nats."""
    method: Any = run.method
    measure, totals = _held_out_losses(method, run.mesh), {}
    for batch in run.heldout:
        with jax.set_mesh(run.mesh):
            found = measure(state.params, run.lm_params, sharding.put_batch(batch, run.mesh))
        for name, (total, count) in jax.device_get(found).items():
            old = totals.get(name, (0.0, 0.0))
            totals[name] = (old[0] + total, old[1] + count)
    means = {f"eval/{name}": float(v) for name, v in metrics.means(totals).items()}
    run.journal.row(step, means)
    shown = "  ".join(f"{k.removeprefix('eval/')} {v:.3f}" for k, v in means.items())
    logger.info("held out at step %d: %s", step, shown)
    return means["eval/token/1"]


SPEECH = Task(
    step=speech_step,
    evaluate=evaluate_heldout,
    export=lambda run, state: None,  # what `generate` needs of a run is its checkpoint
    shown=("loss/token/1", "accuracy/1", "grad_norm/body", "speed/audio_seconds_per_second"),
)
