"""Every objective of the method, once: its weight, when it counts, what it is averaged over.

A loss of its own is one line of `LossWeights` and the function that computes it; weights, counts,
the report's panels and the check that none is forgotten all read these lines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from llmcodec_jax.errors import UsageError
from llmcodec_jax.lm.heads import horizon_weights
from llmcodec_jax.lm.reading import Reading
from llmcodec_jax.training.schedules import Schedule
from llmcodec_jax.types import Batch, Losses

CODEC, DISCRIMINATOR, LM, ALIGNMENT = "codec", "discriminator", "lm", "alignment"
"""The parts of a step that compute losses."""


def clips(batch: Batch, hop: int, reading: Reading, horizon: int) -> jax.Array:
    """Clips of the batch."""
    return jnp.float32(batch.wav.shape[0])


def codes(batch: Batch, hop: int, reading: Reading, horizon: int) -> jax.Array:
    """Codes that are the `horizon`-th after what the LM has read: horizon 1 counts all."""
    return jnp.sum(reading.targets(-(-batch.wav_length // hop), horizon))


def pairs(batch: Batch, hop: int, reading: Reading, horizon: int) -> jax.Array:
    """Codes with one of their level before them."""
    frames = -(-batch.wav_length // hop)
    return jnp.sum(jnp.maximum(frames - 1, 0)) * reading.levels


def texts(batch: Batch, hop: int, reading: Reading, horizon: int) -> jax.Array:
    """Clips that have text."""
    return jnp.sum(batch.text_length > 0)


@dataclasses.dataclass(frozen=True)
class Term:
    """One objective. Its weight is the field of `LossWeights` that has its name."""

    name: str
    part: str  # of the step, that computes it
    panel: str  # of the report, in which it is drawn
    count: Callable[[Batch, int, Reading, int], jax.Array]  # what its sum is divided by
    falls: str = ""  # "cosine" or "linear": its weight goes to NAME_final over the run
    gate: Callable[[Schedule, Any], jax.Array] | None = None  # factor of its weight at a step
    horizons: bool = False  # one loss NAME/k for each of the K horizons


def term(weight: float, part: str, panel: str, count=clips, **options: Any) -> Any:
    """A field of `LossWeights` that carries its Term."""
    made = {"part": part, "panel": panel, "count": count, **options}
    return dataclasses.field(default=weight, metadata={"term": made})


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights of the objectives (docs/method.md). A term of weight 0 is not computed."""

    mel: float = term(1.5, CODEC, "acoustic losses", falls="cosine")
    mel_final: float = 0.75  # of mel, at the last step
    multi_scale_mel: float = term(0.5, CODEC, "acoustic losses")
    multi_resolution_stft: float = term(0.5, CODEC, "acoustic losses")
    complex_stft: float = term(0.8, CODEC, "acoustic losses")
    vq: float = term(1.0, CODEC, "quantiser loss")
    distillation: float = term(0.0, CODEC, "distillation")
    consistency_slice: float = term(0.0, CODEC, "token consistency")
    consistency_shift: float = term(0.0, CODEC, "token consistency")
    consistency_noise: float = term(0.0, CODEC, "token consistency")
    adversarial: float = term(1.0, DISCRIMINATOR, "adversarial losses", gate=Schedule.adversarial)
    feature_matching: float = term(
        1.5, DISCRIMINATOR, "adversarial losses", falls="linear", gate=Schedule.adversarial
    )
    feature_matching_final: float = 1.0  # of feature_matching, at the last step
    r1: float = 2.0  # gamma of the discriminators' gradient penalty (`step.penalty`)
    bridge: float = term(1.0, LM, "bridge (nats)", codes)
    repeats: float = term(0.0, LM, "repeated codes (share)", pairs)
    sa_cosine: float = term(0.1, ALIGNMENT, "semantic alignment", texts, gate=Schedule.alignment)
    sa_contrastive: float = term(
        0.05, ALIGNMENT, "semantic alignment", texts, gate=Schedule.alignment
    )
    ftp: float = term(0.2, LM, "future tokens (nats)", codes, horizons=True)

    def __post_init__(self):
        negative = [n for n, v in dataclasses.asdict(self).items() if v < 0]
        if negative:
            raise UsageError(f"weights.{negative[0]} is negative")

    def terms(self) -> tuple[Term, ...]:
        """Those that are computed: of a weight that is not 0 throughout."""
        return tuple(t for t in TERMS if any(self.course(t)))

    def course(self, term: Term) -> tuple[float, float]:
        """(first, last) weight of a term."""
        first = getattr(self, term.name)
        return first, getattr(self, f"{term.name}_final") if term.falls else first

    def at(self, step, schedule: Schedule) -> dict[str, Any]:
        """name -> weight of each computed term at a step (a traced or host scalar)."""
        weights = {}
        for term in self.terms():
            first, last = self.course(term)
            weight: Any = first
            if term.falls == "cosine":
                weight = schedule.cosine(step, first, last, 0.0, 1.0)
            elif term.falls == "linear":
                progress = jnp.clip(step / schedule.total_steps, 0.0, 1.0)
                weight = first + progress * (last - first)
            weights[term.name] = weight if term.gate is None else weight * term.gate(schedule, step)
        return weights


TERMS = tuple(
    Term(name=field.name, **field.metadata["term"])
    for field in dataclasses.fields(LossWeights)
    if "term" in field.metadata
)


def expand(term: Term, horizons: int) -> list[str]:
    """The names of a term's losses."""
    return [f"{term.name}/{k}" for k in range(1, horizons + 1)] if term.horizons else [term.name]


def step_weights(weights: LossWeights, schedule: Schedule, step, horizons: int) -> dict[str, Any]:
    """name -> weight of every loss at a step; FTP's is split over its horizons."""
    found = weights.at(step, schedule)
    split = {}
    for term in weights.terms():
        if term.horizons:
            total = found.pop(term.name)
            shares = horizon_weights(horizons) if horizons else ()
            split |= {n: total * w for n, w in zip(expand(term, horizons), shares, strict=True)}
    return found | split


def batch_counts(
    weights: LossWeights, batch: Batch, hop: int, reading: Reading, horizons: int
) -> dict:
    """Valid elements per loss over the whole batch: known from the lengths before any forward
    pass, so that micro-batches with uneven padding add up to exactly the full-batch gradient."""
    counts = {"discriminator": clips(batch, hop, reading, 1)}
    for term in weights.terms():
        for k, name in enumerate(expand(term, horizons), start=1):
            counts[name] = term.count(batch, hop, reading, k)
    return counts


def averages(losses: Losses, counts: dict) -> dict[str, jax.Array]:
    """sum_i / count_i by name, with the counts of the whole (accumulated) batch."""
    return {name: total / jnp.maximum(counts[name], 1) for name, (total, _) in losses.items()}


def weighted_total(losses: Losses, weights: dict[str, Any], counts: dict) -> jax.Array:
    """sum_i w_i * sum_i / count_i, with the counts of the whole (accumulated) batch."""
    terms = [
        weight * losses[name][0] / jnp.maximum(counts[name], 1)
        for name, weight in weights.items()
        if name in losses
    ]
    return sum(terms, jnp.zeros(()))


def check_losses(
    losses: Losses, weights: LossWeights, parts: Iterable[str], horizons: int
) -> Losses:
    """The losses, if they are exactly the computed terms of these parts of the step.

    Raises ValueError for a loss without a weight and for a weight without its loss.
    """
    found = {name for name in losses if not name.startswith("accuracy/")}
    parts = tuple(parts)
    wanted = {n for t in weights.terms() if t.part in parts for n in expand(t, horizons)}
    if found != wanted:
        raise ValueError(
            f"losses without a weight: {sorted(found - wanted)}; "
            f"weights without a loss: {sorted(wanted - found)} (training/terms.py)"
        )
    return losses


def panels(horizons: int = 10) -> dict[str, list[str]]:
    """Title -> rows of the metrics: the losses as the report draws them."""
    drawn: dict[str, list[str]] = {}
    for term in TERMS:
        drawn.setdefault(term.panel, []).extend(f"loss/{n}" for n in expand(term, horizons))
    drawn["adversarial losses"] += ["loss/discriminator", "loss/r1"]
    return drawn
