"""What happens when: pure functions of the step (method.md 7).

Every start and ramp is a fraction of `total_steps`, so a run of any length passes through the
same phases and no horizon can outlive the run.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from llmcodec_jax.errors import UsageError

NEVER = 2.0
"""A start no run reaches: `start=NEVER` switches a part off."""


class Phase(NamedTuple):
    """Which parts of the step exist at all. Static: each distinct phase is one compilation."""

    codec: bool  # codec parameters receive gradients
    discriminator: bool  # discriminators run and learn
    lm: bool  # bridge, frozen LM, heads and alignment run
    penalty: bool = False  # the discriminators' lazy R1 penalty is due (`Method.phase`)

    def __str__(self) -> str:
        """Its parts, as messages name them: "codec + lm"."""
        return " + ".join(name for name, on in self._asdict().items() if on)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The run's timetable. Fields are fractions of `total_steps` unless they say otherwise."""

    total_steps: int
    codec_start: float = 0.0  # codec parameters start to move
    discriminator_start: float = 0.0  # discriminators start to learn
    adversarial_start: float = 0.0  # adversarial and feature-matching losses reach the codec
    lm_start: float = 0.0  # bridge, audio embeddings and heads start to learn
    ftp_start: float = 0.0  # the LM losses' gradient starts to reach the codec ...
    ftp_ramp: float = 0.0  # ... and is whole this much later
    sa_start: float = 0.0  # semantic alignment starts ...
    sa_ramp: float = 0.0  # ... and has its full weight this much later
    temperature_start: float = 1.0  # bridge temperature at lm_start
    temperature_end: float = 0.3  # bridge temperature after temperature_steps
    temperature_shape: str = "cosine"  # or "linear"
    temperature_steps: float = 0.8  # length of the annealing

    def __post_init__(self):
        if self.total_steps < 1:
            raise UsageError(f"schedule.total_steps must be at least 1, got {self.total_steps}")
        if self.temperature_shape not in ("cosine", "linear"):
            raise UsageError("schedule.temperature_shape is 'cosine' or 'linear'")
        if self.temperature_end <= 0 or self.temperature_start <= 0:
            raise UsageError("schedule.temperature_start and temperature_end must be positive")
        if len(self.phases()) > 3:
            raise UsageError(
                "the schedule has more than three phases, each a compilation: "
                f"{self.phases()}; let two of codec_start, discriminator_start and lm_start agree"
            )

    def step_of(self, fraction: float) -> int:
        """The step at which a start given as a fraction falls."""
        return round(fraction * self.total_steps)

    def phase(self, step: int) -> Phase:
        """The static phase of a (host-side) step."""
        return Phase(
            codec=step >= self.step_of(self.codec_start),
            discriminator=step >= self.step_of(self.discriminator_start),
            lm=step >= self.step_of(self.lm_start),
        )

    def phases(self) -> list[tuple[int, Phase]]:
        """The run's phases as (first step, phase), in order."""
        starts = {0} | {
            self.step_of(f) for f in (self.codec_start, self.discriminator_start, self.lm_start)
        }
        steps = sorted(s for s in starts if s < self.total_steps)
        return [(s, self.phase(s)) for s in steps]

    def ramp(self, step, start: float, length: float):
        """0 before `start`, linear to 1 over `length` (fractions of the run)."""
        begin, steps = self.step_of(start), max(self.step_of(length), 1)
        return jnp.clip((step - begin + 1) / steps, 0.0, 1.0) * (step >= begin)

    def cosine(self, step, first: float, last: float, start: float, length: float):
        """Half a cosine from `first` at `start` to `last` after `length`."""
        steps = max(self.step_of(length), 1)
        progress = jnp.clip((step - self.step_of(start)) / steps, 0.0, 1.0)
        return last + (first - last) * 0.5 * (1 + jnp.cos(jnp.pi * progress))

    def temperature(self, step):
        """Bridge temperature, annealed from the LM's own start."""
        first, last = self.temperature_start, self.temperature_end
        if self.temperature_shape == "cosine":
            return self.cosine(step, first, last, self.lm_start, self.temperature_steps)
        steps = max(self.step_of(self.temperature_steps), 1)
        progress = jnp.clip((step - self.step_of(self.lm_start)) / steps, 0.0, 1.0)
        return first + (last - first) * progress

    def codec_gate(self, step):
        """Share of the LM losses' gradient that passes from the bridge into the codec.

        Heads and embeddings learn from `lm_start` at full weight while the codec is spared;
        the gate is how "FTP ramps to 0.2" (method.md 7) without starving them.
        """
        return self.ramp(step, self.ftp_start, self.ftp_ramp)

    def adversarial(self, step):
        """1 from the step at which the adversarial losses reach the codec, else 0."""
        return step >= self.step_of(self.adversarial_start)

    def alignment(self, step):
        """Share of their weight that the alignment losses have."""
        return self.ramp(step, self.sa_start, self.sa_ramp)

    def start_of(self, name: str) -> float:
        """A start by its name ("codec_start"); "" is the run's own. Raises UsageError."""
        starts = [f.name for f in dataclasses.fields(self) if f.name.endswith("_start")]
        if name and name not in starts:
            raise UsageError(f"schedule has no {name!r}, only {', '.join(starts)}")
        return getattr(self, name) if name else 0.0

    def learning_rate(self, step, peak: float, start: float, warmup: float, final: float):
        """Linear warm-up from a group's own start, then cosine to `final * peak` at the end."""
        begin = self.step_of(start)
        rise = self.ramp(step, start, warmup)
        begin_decay = begin + self.step_of(warmup)
        span = max(self.total_steps - begin_decay, 1)
        progress = jnp.clip((step - begin_decay) / span, 0.0, 1.0)
        decay = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return peak * rise * decay
