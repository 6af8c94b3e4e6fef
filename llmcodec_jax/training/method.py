"""The whole method as one static value: which modules, which weights, when (paper, figure 2).

`Method` is what `step.py` closes over and `state.py` initialises from. It is built from a run's
config once; nothing below reads a config.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from llmcodec_jax import bridge as bridging
from llmcodec_jax import types
from llmcodec_jax.discriminators import DiscriminatorConfig, Discriminators
from llmcodec_jax.errors import UsageError
from llmcodec_jax.lm.config import LMConfig
from llmcodec_jax.lm.reading import Reading, check_reads, reading
from llmcodec_jax.losses.distillation import KINDS
from llmcodec_jax.losses.spectral import SpectralConfig
from llmcodec_jax.ops.fields import fixed
from llmcodec_jax.training.optim import Group
from llmcodec_jax.training.schedules import Phase, Schedule
from llmcodec_jax.training.terms import LossWeights, Term

if TYPE_CHECKING:
    from llmcodec_jax.training.config import RunConfig


@dataclasses.dataclass(frozen=True)
class Bridge:
    """How codec latents become LM inputs (docs/method.md, section 3)."""

    # "native": the quantiser's own space; "projection": the paper's learned W z + b.
    logits: str = fixed("native")
    mode: str = "gumbel"  # "ste" (no noise) or "detach" (no LM gradient to the codec)
    # native: logits = -(squared distance) / scale, in units of the median squared distance between
    # neighbouring codes. At 0.5 (shipped codec, speech-like signals) the median frame's relaxation
    # holds 7.6 codes at temperature 1 and 1.9 at 0.3, and the noise leaves 35 % and 75 % of the
    # codes as they are; at 0.25 2.9 and 1.2 codes, 61 % and 87 %.
    scale: float = 0.5
    chunk: int = 512  # codes per chunk of the fused sampler: memory, never the result
    jitter_seconds: float = 0.0015  # the LM branch's audio is shifted by up to this, either way
    label_noise: float = 0.015  # share of FTP labels replaced by random codes
    # FTP's gradient through the codes to be predicted, beside that through the codes that were
    # read: 0 as published; 1 draws the codec to the better predicted of two equally good codes
    # (`language.target_gradient`).
    target_gradient: float = 0.0
    frequency_weight: float = 1.0  # of that: what a code's own frequency weighs against it
    # How far back that frequency is counted: over the last `window` codes for each code there is.
    # A long one sees too late that codes empty, and they do (docs/study.md, "A residual codec").
    # The log's codes/... are of the same count.
    frequency_window: float = 32.0

    def __post_init__(self):
        if self.logits not in bridging.LOGITS:
            raise UsageError(f"bridge.logits is one of {bridging.LOGITS}")
        if self.mode not in bridging.MODES:
            raise UsageError(f"bridge.mode is one of {bridging.MODES}")
        if self.mode == "detach" and self.target_gradient:
            raise UsageError("bridge.mode 'detach' passes no gradient: target_gradient must be 0")
        if self.frequency_window <= 0:
            raise UsageError("bridge.frequency_window is a number of codes, above 0")
        if not 0 <= self.jitter_seconds < 1:
            raise UsageError("bridge.jitter_seconds is a few milliseconds, in seconds")

    def logits_of(self) -> bridging.Native | bridging.Projection:
        """How the codec's output becomes logits over its codes."""
        native = self.logits == "native"
        return bridging.Native(self.scale) if native else bridging.Projection()


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """The frozen LM's role in training (docs/method.md, sections 2, 4 and 5)."""

    path: str = ""  # Hugging Face folder, .gguf file or "embedded"; "" trains without an LM
    # Of a codec with several levels: "first" the first alone, "flat" all, one position each, "sum"
    # all, one position a frame (lm/reading.py).
    reads: str = fixed("first")
    begin_token: int = 0  # text token whose frozen embedding opens every audio sequence
    # K, future-token heads, each a position further on: a frame, or with "flat" the next level.
    horizons: int = fixed(5)
    embedding_start: str = "text_distribution"  # start of the audio rows (lm/vocab.py)
    bank: int = fixed(512)  # contrastive negatives per aligned layer
    logit_scale: float = 5.0  # of the contrastive loss
    smoothing: float = 0.1  # label smoothing of the contrastive loss
    dtype: str = "bfloat16"  # of the frozen weights and their matmuls
    # Whether the backward pass recomputes even products with weights: "always", "never", or "auto":
    # where the step does not fit the devices' memory otherwise.
    remat: str = "auto"
    # The architecture, so that a run can be compiled without weights (compile_check). Training
    # takes what `path` holds and warns of a difference.
    config: LMConfig | None = fixed(None)

    def __post_init__(self):
        check_reads(self.reads, "lm.reads")
        if self.remat not in ("auto", "always", "never"):
            raise UsageError("lm.remat is 'auto', 'always' or 'never'")

    @property
    def architecture(self) -> LMConfig:
        """`config`, where there is one. Raises UsageError."""
        if self.config is None:
            raise UsageError("config.lm.config is empty: the LM's architecture is not known")
        return self.config


@dataclasses.dataclass(frozen=True)
class Distillation:
    """What the codec's tokens are taught to know; `weights.distillation` says how much."""

    # HuBERT or wav2vec 2.0 (folder or hf:OWNER/NAME), or "whisper" (evaluation/whisper); "" none.
    teacher: str = ""
    width: int = fixed(768)  # of the teacher's features
    layer: int = 9  # of HuBERT or wav2vec 2.0, 0 the input; -1 the mean of all
    student: str = "first"  # what predicts them: the "first" level, or the "latent"
    kind: str = "frame"  # as in Mimi, or "channel" as in SpeechTokenizer (losses/distillation)

    def __post_init__(self):
        if self.student not in ("first", "latent"):
            raise UsageError("distillation.student is 'first' or 'latent'")
        if self.kind not in KINDS:
            raise UsageError(f"distillation.kind is one of {KINDS}")


@dataclasses.dataclass(frozen=True)
class CodecTraining:
    """How the codec itself is trained."""

    # BatchNorm learns its statistics even where the codec starts from a trained one; a codec from
    # scratch always learns them.
    train_norm: bool = False
    use_domains: bool = False  # limit the code search to each clip's domain partition
    revive_every: int = 0  # steps between revivals of dead codes; 0 never
    revive_below: float = 0.02  # a code is dead below this share of its fair share 1 / V
    # Share of the clips that use a drawn number of a residual codec's levels, so that fewer serve
    # too (SoundStream: 1, DAC: 0.5).
    quantiser_dropout: float = 0.0
    # Norm to which EnCodec's balancer brings the gradient of all losses on the decoded audio, each
    # having its weight's share of it (EnCodec: 1); 0: losses are added by their weights.
    balance: float = 0.0

    def __post_init__(self):
        if not 0 <= self.quantiser_dropout <= 1:
            raise UsageError("training.quantiser_dropout is a share, from 0 to 1")
        if self.balance < 0:
            raise UsageError("training.balance is a norm, 0 for none")


@dataclasses.dataclass(frozen=True)
class Consistency:
    """What must not change the codes (training/consistency.py; weights.consistency_*).

    The defaults are the changes that `evaluate consistency` makes to 16 kHz audio.
    """

    shift_seconds: float = 0.0015  # at most, either way
    noise_db: float = 30.0  # below each clip
    slice_share: float = 0.5  # of the clip's length that is coded alone

    def __post_init__(self):
        if not 0 < self.slice_share <= 1:
            raise UsageError("consistency.slice_share is above 0 and at most 1")
        if not 0 <= self.shift_seconds < 1:
            raise UsageError("consistency.shift_seconds is a few milliseconds, in seconds")


@dataclasses.dataclass(frozen=True)
class Method:
    """Everything about a run that is fixed when the step is compiled."""

    codec: types.Codec
    game: DiscriminatorConfig
    lm: LanguageModel | None
    bridge: Bridge
    schedule: Schedule
    weights: LossWeights
    spectral: SpectralConfig
    training: CodecTraining
    distillation: Distillation
    consistency: Consistency
    groups: tuple[Group, ...]  # of codec, bridge, audio embedding and heads
    discriminator_group: Group
    accumulate: int = 1  # micro-batches per update
    from_scratch: bool = False  # the codebook's first place is on the first batch
    max_bad_steps: int = 20  # non-finite steps in a row before training stops

    def __post_init__(self):
        name = type(self.codec).__name__
        if self.training.revive_every and not hasattr(self.codec, "revive"):
            raise UsageError(f"training.revive_every: {name} cannot revive codes; set it to 0")
        counts = self.train_norm or hasattr(self.codec, "count_codes")
        if self.training.revive_every and not counts:
            raise UsageError(
                f"training.revive_every: {name} counts its codes only while its statistics train; "
                "set training.train_norm=True or revive_every=0"
            )
        if bool(self.distillation.teacher) != bool(self.weights.distillation):
            raise UsageError("distillation.teacher and weights.distillation go together")
        if self.training.quantiser_dropout and self.codec.levels == 1:
            raise UsageError(f"training.quantiser_dropout: {name} has one level; set it to 0")
        if self.training.use_domains and not hasattr(self.codec, "domain_bounds"):
            raise UsageError(f"training.use_domains: {name} has no domain partitions")

    @property
    def discriminators(self) -> Discriminators | None:
        """The second player, where there is one."""
        return self.game.module() if self.game.enabled else None

    @property
    def align(self) -> bool:
        """Whether semantic alignment is part of the run at all."""
        return self.lm is not None and any(t.part == "alignment" for t in self.weights.terms())

    @property
    def consistent(self) -> bool:
        """Whether a term asks for codes that stay themselves."""
        return any(t.name.startswith("consistency") for t in self.weights.terms())

    @property
    def train_norm(self) -> bool:
        """Whether BatchNorm learns its statistics."""
        return self.from_scratch or self.training.train_norm

    @property
    def horizons(self) -> int:
        """K, 0 without a language model."""
        return self.lm.horizons if self.lm else 0

    @property
    def reading(self) -> Reading:
        """How the language model reads the codec's levels."""
        return reading(self.lm.reads, self.codec.levels) if self.lm else Reading()

    @property
    def terms(self) -> tuple[Term, ...]:
        """The losses that this run computes in its last phase."""
        present = {"codec": True, "discriminator": self.game.enabled, "lm": self.lm is not None}
        present["alignment"] = present["lm"]
        return tuple(t for t in self.weights.terms() if present[t.part])

    @property
    def jitter(self) -> int:
        """Samples by which the LM branch's audio is shifted at most."""
        return round(self.bridge.jitter_seconds * self.codec.sample_rate)

    def phase(self, step: int) -> Phase:
        """The static phase of a step, without the parts this run does not have."""
        planned = self.schedule.phase(step)
        found = planned._replace(
            discriminator=planned.discriminator and self.game.enabled,
            lm=planned.lm and self.lm is not None,
        )
        return found if step % self.game.r1_every else self.penalised(found)

    def penalised(self, phase: Phase) -> Phase:
        """The same at a step at which R1 is due, if this run has it and discriminators learn."""
        return phase._replace(penalty=phase.discriminator and self.weights.r1 > 0)

    @classmethod
    def from_config(cls, config: RunConfig, lm_config: LMConfig | None) -> Method:
        """The method of a run, under the architecture of the LM that was found, if any."""
        lm = dataclasses.replace(config.lm, config=lm_config) if lm_config else None
        groups = dict(config.optim.groups)
        absent = set() if lm else {"bridge", "audio_embedding", "ftp_heads"}
        if not config.bridge.logits_of().learned:
            absent.add("bridge")
        if not config.distillation.teacher:
            absent.add("distillation")
        return cls(
            codec=config.codec,
            game=config.discriminators,
            lm=lm,
            bridge=config.bridge,
            schedule=config.schedule,
            weights=config.weights,
            spectral=config.spectral,
            training=config.training,
            distillation=config.distillation,
            consistency=config.consistency,
            discriminator_group=groups.pop("discriminators"),
            groups=tuple(group for name, group in groups.items() if name not in absent),
            accumulate=config.optim.accumulate,
            max_bad_steps=config.optim.max_bad_steps,
            from_scratch=not config.init,
        )
