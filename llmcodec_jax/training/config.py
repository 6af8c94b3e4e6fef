"""A run's config, typed: every option, its default and its meaning stand in these dataclasses.

Files in configs/ start from `default_config()`, state what their run sets, and stay open to
--config.section.field=value; `read_config` makes a `RunConfig` of the result.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from llmcodec_jax import types
from llmcodec_jax.codec import registry
from llmcodec_jax.data.config import DataConfig
from llmcodec_jax.discriminators import DiscriminatorConfig
from llmcodec_jax.losses.spectral import SpectralConfig
from llmcodec_jax.ops import fields
from llmcodec_jax.ops.fields import changeable
from llmcodec_jax.training.method import (
    Bridge,
    CodecTraining,
    Consistency,
    Distillation,
    LanguageModel,
)
from llmcodec_jax.training.optim import Group
from llmcodec_jax.training.schedules import Schedule
from llmcodec_jax.training.terms import LossWeights


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Updates, and one group of parameters per part of the model."""

    accumulate: int = 1  # micro-batches per update
    max_bad_steps: int = 20  # non-finite steps in a row before training stops
    groups: Mapping[str, Group] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices = data * fsdp * tensor; -1 takes what is left."""

    data: int = 1  # copies of the frozen LM; clips are split over data * fsdp
    fsdp: int = -1  # devices that share one copy, each layer gathered when its turn comes
    tensor: int = 1  # devices that share each matrix product; keep within a host


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What a run writes, and how often."""

    every: int = 50  # steps between rows of metrics.jsonl
    eval_every: int = 1000  # steps between evaluations on the fixed held-out set
    eval_clips: int = 32  # held-out clips
    listen: int = 4  # of them kept as audio and pictures
    checkpoint_every: int = 500
    checkpoint_dir: str = ""  # where to; "" the run folder. On pods gs://BUCKET/FOLDER
    keep: int = 2  # newest checkpoints kept, beside the best one
    # Limits in seconds where several processes run (`distributed`); LLMCODEC_PEER_TIMEOUT,
    # LLMCODEC_STEP_TIMEOUT and LLMCODEC_PAUSE_TIMEOUT go before them.
    peer_timeout: int = 100  # until a process that is not heard of ends the run
    step_timeout: int = 600  # until a step that does not end (a straggler, a hang) ends it
    pause_timeout: int = 3600  # the same while compiling, evaluating, restoring, saving
    profile: tuple[int, int] = (0, 0)  # steps [first, last) to trace into the run folder
    tensorboard: bool = True
    wandb: bool = False  # Weights & Biases, if installed


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One training run. Unmarked options are fixed once a run has begun (`ops.fields`)."""

    codec: types.Codec  # the section names the family, and the fields of its module
    schedule: Schedule = changeable()  # the section states all but `total_steps`
    seed: int = 0  # of parameters, noise and data order
    total_steps: int = changeable(25_000)  # optimiser updates
    # Codec to start from: "mini" (with codec.codebook_size=8192), run, converted folder,
    # .safetensors, .pt; "" from scratch.
    init: str = changeable("")
    discriminators: DiscriminatorConfig = dataclasses.field(default_factory=DiscriminatorConfig)
    lm: LanguageModel = changeable(LanguageModel)
    bridge: Bridge = changeable(Bridge)
    weights: LossWeights = changeable(LossWeights)
    spectral: SpectralConfig = changeable(SpectralConfig)
    optim: OptimConfig = changeable(OptimConfig)
    training: CodecTraining = changeable(CodecTraining)
    distillation: Distillation = changeable(Distillation)
    consistency: Consistency = changeable(Consistency)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    mesh: MeshConfig = changeable(MeshConfig)
    log: LogConfig = changeable(LogConfig)
    source: dict[str, Any] = dataclasses.field(default_factory=dict)  # as the file states it

    @property
    def clip_samples(self) -> int:
        """Samples of a training clip, whole frames."""
        return self.data.clip_samples(self.codec.sample_rate, self.codec.hop)

    @property
    def audio_per_step(self) -> float:
        """Seconds of audio in a batch."""
        return self.data.batch_size * self.data.clip_seconds


def default_config(family: str = "auv") -> ConfigDict:
    """Every option of a run with its default, for a config file to change."""
    options = fields.defaults(RunConfig) | {"schedule": fields.defaults(Schedule)}
    del options["source"]
    return ConfigDict({"codec": default_codec(family), **options})


def default_codec(family: str) -> dict[str, Any]:
    """The `codec` section: the family's name and its module's fields. Raises FieldError."""
    return {"name": family, **fields.defaults(registry.family(family).module)}


def group(pattern: str, start: str, **options: Any) -> dict[str, Any]:
    """A section of `optim.groups`: the defaults of `optim.Group`, changed by `options`."""
    return fields.defaults(Group) | {"pattern": pattern, "start": start} | options


def read_config(config: ConfigDict) -> RunConfig:
    """A config file's value -> RunConfig.

    Raises UsageError naming the field and the nearest, FieldError for an unknown codec.
    """
    source = config.to_dict()
    sections = dict(source)
    codec = dict(sections.pop("codec"))
    name = codec.pop("name")
    schedule = sections.pop("schedule")
    groups = sections["optim"].pop("groups", {})
    given = {
        "codec": fields.build(registry.family(name).module, codec, "codec"),
        "schedule": fields.build(
            Schedule, schedule, "schedule", total_steps=sections.get("total_steps")
        ),
        "source": config.to_dict(),
    }
    run = fields.build(RunConfig, sections, "", **given)
    built = {n: fields.build(Group, g, f"optim.groups.{n}", name=n) for n, g in groups.items()}
    for one in built.values():
        run.schedule.start_of(one.start)  # refuses an unknown start
    return dataclasses.replace(run, optim=dataclasses.replace(run.optim, groups=built))


def may_change(path: str, family: str) -> bool:
    """Whether the option "section.field" of a run, its codec of this family, may differ when the
    run resumes; options of older versions may."""
    if path == "codec.name":
        return False
    if path.startswith("optim.groups."):
        return fields.may_change(Group("", ""), path.rpartition(".")[2], allowed=True)
    return fields.may_change(_default_run(family), path)


@functools.cache
def _default_run(family: str) -> RunConfig:
    return read_config(default_config(family))
