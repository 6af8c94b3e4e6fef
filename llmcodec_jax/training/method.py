"""The whole method as one static value: which modules, which weights, when (paper, figure 2).

`Method` is what `step.py` closes over and `state.py` initialises from. It is built from a config
once; nothing below reads a config object.
"""

from __future__ import annotations

import dataclasses

from llmcodec_jax import types
from llmcodec_jax.codec import registry
from llmcodec_jax.discriminators import Discriminators
from llmcodec_jax.lm.config import LMConfig
from llmcodec_jax.training.optim import Group
from llmcodec_jax.training.schedules import LossWeights, Phase, Schedule


@dataclasses.dataclass(frozen=True)
class Bridge:
    """How codec latents become LM inputs (method.md 3)."""

    logits: str = "native"  # "native": cosine space of the quantiser; "projection": W z + b
    mode: str = "gumbel"  # "gumbel", "ste" (no noise) or "detach" (no gradient to the codec)
    scale: float = 0.01  # native only: logits = -(squared cosine distance) / scale
    chunk: int = 512  # codes handled at once; bounds the memory, never changes the result
    jitter: int = 24  # samples by which the LM branch's audio is shifted at random, either way
    label_noise: float = 0.015  # share of FTP labels replaced by random codes
    target_gradient: float = 0.0  # FTP gradient through the predicted codes; 0 as published
    frequency_weight: float = 1.0  # beta of that gradient: what a code's own frequency weighs

    def __post_init__(self):
        if self.logits not in ("native", "projection"):
            raise ValueError("bridge.logits is 'native' or 'projection'")
        if self.mode not in ("gumbel", "ste", "detach"):
            raise ValueError("bridge.mode is 'gumbel', 'ste' or 'detach'")
        if self.mode == "detach" and self.target_gradient:
            raise ValueError("bridge.mode 'detach' passes no gradient: target_gradient must be 0")


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """The frozen LM's role in training (method.md 2, 4, 5)."""

    config: LMConfig  # architecture
    begin_token: int = 0  # text token whose frozen embedding opens every audio sequence
    horizons: int = 5  # K, future-token heads
    embedding_start: str = "text_distribution"  # start of the audio rows (lm/vocab.py)
    bank: int = 512  # contrastive negatives per aligned layer
    logit_scale: float = 5.0  # of the contrastive loss
    smoothing: float = 0.1  # label smoothing of the contrastive loss
    dtype: str = "bfloat16"  # of the frozen weights and their matmuls
    remat: bool = True  # in the backward pass recompute even products with weights


@dataclasses.dataclass(frozen=True)
class Method:
    """Everything about a run that is fixed when the step is compiled."""

    codec: types.Codec
    discriminators: Discriminators | None
    lm: LanguageModel | None
    bridge: Bridge
    schedule: Schedule
    weights: LossWeights
    groups: tuple[Group, ...]  # of codec, bridge, audio embedding and heads
    discriminator_group: Group
    adversarial_kind: str = "hinge"  # or "lsgan"
    r1_every: int = 16  # steps between gradient penalties, weighted up by as much
    accumulate: int = 1  # micro-batches per update
    train_norm: bool = False  # BatchNorm learns (from scratch) or keeps its statistics
    use_domains: bool = False  # limit the code search to each clip's domain partition
    revive_every: int = 0  # steps between revivals of dead codes; 0 never (fine-tuning)
    revive_below: float = 0.02  # a code is dead below this share of its fair share 1 / V
    from_scratch: bool = False  # the codebook's first place is on the first batch
    max_bad_steps: int = 20  # non-finite steps in a row before training stops

    def __post_init__(self):
        name = type(self.codec).__name__
        if self.revive_every and not hasattr(self.codec, "revive"):
            raise ValueError(f"training.revive_every: {name} cannot revive codes; set it to 0")
        if self.use_domains and not hasattr(self.codec, "domain_bounds"):
            raise ValueError(f"training.use_domains: {name} has no domain partitions; set it False")

    @property
    def align(self) -> bool:
        """Whether semantic alignment is part of the run at all."""
        return self.lm is not None and (
            self.weights.sa_cosine > 0 or self.weights.sa_contrastive > 0
        )

    def phase(self, step: int) -> Phase:
        """The static phase of a step, without the parts this run does not have."""
        codec, discriminator, lm = self.schedule.phase(step)
        return Phase(
            codec, discriminator and self.discriminators is not None, lm and self.lm is not None
        )

    @classmethod
    def from_config(cls, config, lm_config: LMConfig | None) -> Method:
        """Builds the method from a config (configs/base.py) and the LM's architecture, if any.

        Raises TypeError on a field that no part knows, ValueError on one that cannot be.
        """
        codec, judges, lm = (dict(config[name]) for name in ("codec", "discriminators", "lm"))
        codec_class = registry.family(codec.pop("name")).module
        enabled, kind = judges.pop("enabled"), judges.pop("loss")
        r1_every = judges.pop("r1_every")
        del lm["path"], lm["config"]
        absent = set() if lm_config else {"bridge", "audio_embedding", "ftp_heads"}
        absent |= {"bridge"} if config.bridge.logits == "native" else set()
        groups = {name: Group(name=name, **g) for name, g in config.optim.groups.items()}
        return cls(
            codec=codec_class(**codec),
            discriminators=Discriminators(**judges) if enabled else None,
            lm=LanguageModel(config=lm_config, **lm) if lm_config else None,
            bridge=Bridge(**config.bridge),
            schedule=Schedule(total_steps=config.total_steps, **config.schedule),
            weights=LossWeights(**config.weights),
            discriminator_group=groups.pop("discriminators"),
            groups=tuple(group for name, group in groups.items() if name not in absent),
            adversarial_kind=kind,
            r1_every=r1_every,
            accumulate=config.optim.accumulate,
            max_bad_steps=config.optim.max_bad_steps,
            from_scratch=not config.init,
            **config.training,
        )
