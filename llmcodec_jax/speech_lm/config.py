"""A speech LM's run, typed: every option, its default and its meaning (docs/speech.md)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from ml_collections import ConfigDict

from llmcodec_jax.errors import UsageError
from llmcodec_jax.lm.config import LMConfig, small_config
from llmcodec_jax.ops import fields
from llmcodec_jax.ops.fields import changeable, fixed
from llmcodec_jax.speech_lm.template import READS, TASKS
from llmcodec_jax.training.config import LogConfig, MeshConfig, OptimConfig, group
from llmcodec_jax.training.optim import Group
from llmcodec_jax.training.schedules import Schedule

BYTES = 256
"""Text tokens of an LM from scratch: UTF-8 bytes."""


@dataclasses.dataclass(frozen=True)
class SpeechLM:
    """The decoder."""

    # Hugging Face folder, .gguf file or "embedded"; "" a decoder from scratch, reading bytes.
    path: str = ""
    width: int = fixed(256)  # of a decoder from scratch
    layers: int = fixed(4)  # of a decoder from scratch
    tune: str = fixed("all")  # of a pretrained one: "all" weights, or "lora"
    rank: int = fixed(64)  # of LoRA
    alpha: float = 128.0  # of LoRA: its update counts alpha / rank
    dropout: float = 0.0  # of LoRA's inputs
    # A residual codec's levels: "flat" take turns, "sum" and "delay" stand at one position, each
    # with a head of its own (template.py); such an LM writes a frame a pass and has one horizon.
    reads: str = fixed("flat")
    horizons: int = fixed(4)  # K heads: the first writes, the others propose (Medusa)
    # Heads and rows to start from: "text_distribution", or "from:FOLDER" (lm/vocab.py).
    rows_start: str = "text_distribution"
    further_weight: float = 0.3  # of all further heads' loss together, beside the first's 1
    dtype: str = "float32"  # of a pretrained LM's frozen weights
    remat: str = "auto"  # "always", "never", "auto": recompute the products in the backward pass
    config: LMConfig | None = fixed(None)  # the architecture that was found; never in a file

    def __post_init__(self):
        if self.tune not in ("all", "lora"):
            raise UsageError("lm.tune is 'all' or 'lora'")
        if self.tune == "lora" and not self.path:
            raise UsageError("lm.tune='lora' needs a pretrained lm.path to tune")
        if self.horizons < 1:
            raise UsageError("lm.horizons is at least 1: the head that writes")
        if self.reads not in READS:
            raise UsageError(f"lm.reads is one of {', '.join(READS)}, not {self.reads!r}")
        if self.reads != "flat" and self.horizons > 1:
            raise UsageError(
                f"lm.reads={self.reads!r} writes a frame a pass: set lm.horizons=1 with it"
            )

    @property
    def architecture(self) -> LMConfig:
        """The decoder's. One from scratch reads bytes."""
        return self.config or small_config(BYTES, self.width, self.layers)


@dataclasses.dataclass(frozen=True)
class SpeechData:
    """What is learned from."""

    # librispeech:DIR, folder:DIR, ... (data/sources.py), coded once; tokens:PATH, as it is;
    # dialogues:FILE.jsonl for chat (dialogues.py).
    sources: tuple[str, ...] = ()
    # Training clips of recordings are coded at these speeds too, 0.5 to 2: other voices for free.
    speeds: tuple[float, ...] = ()
    levels: int = 0  # a residual codec's levels that are read; 0 all
    eval_fraction: float = 0.05  # of the clips, by a hash of their names
    eval_max: int = 64  # held-out clips at most
    # "name"; or "speaker" or "text": held-out voices or sentences are never trained on.
    split_by: str = "name"
    min_seconds: float = 0.5
    max_seconds: float = 10.0  # continuation crops longer clips, the others leave them out
    voice_seconds: float = 3.0  # of the voice prompt
    voice_share: float = 0.8  # of sequences that have one, where the voice has another clip
    lowercase: bool = True  # of texts
    length: int = 1024  # tokens of a packed row
    batch_size: int = changeable(8)  # rows


@dataclasses.dataclass(frozen=True)
class SpeechConfig:
    """One run. Unmarked options are fixed once it has begun (`ops.fields`)."""

    codec: str = "mini"  # whose tokens; its digest is what must stay
    task: str = "continuation"  # see `template`
    seed: int = 0
    total_steps: int = changeable(10_000)
    lm: SpeechLM = changeable(SpeechLM)
    data: SpeechData = dataclasses.field(default_factory=SpeechData)
    optim: OptimConfig = changeable(OptimConfig)
    mesh: MeshConfig = changeable(MeshConfig)
    log: LogConfig = changeable(LogConfig)
    source: dict[str, Any] = dataclasses.field(default_factory=dict)  # as the file states it
    audio_per_step: float = 0.0  # seconds of audio a batch holds at most; known with the codec

    def __post_init__(self):
        if self.task not in TASKS:
            raise UsageError(f"task is one of {', '.join(TASKS)}, not {self.task!r}")
        if self.task == "chat" and self.lm.reads != "flat":
            raise UsageError("the chat task writes text too, a position a token: lm.reads='flat'")
        if self.optim.accumulate != 1:
            raise UsageError("optim.accumulate: a speech LM's rows are not divided; leave it at 1")
        speeds = self.data.speeds
        if len({1.0, *speeds}) <= len(speeds) or not all(0.5 <= s <= 2 for s in speeds):
            raise UsageError(f"data.speeds: each once, 0.5 to 2 and not 1 itself, not {speeds}")

    @property
    def schedule(self) -> Schedule:
        """Of the learning rates."""
        return Schedule(self.total_steps)


def default_config() -> ConfigDict:
    """Every option with its default, for a config file to change."""
    options = fields.defaults(SpeechConfig)
    del options["source"], options["audio_per_step"]
    options["optim"]["groups"] = {
        "body": group(
            r"(body|lora)/.*", "", learning_rate=1e-3, b2=0.95, warmup=0.05, final=0.1, clip=1.0,
            weight_decay=0.05,
        ),
        "rows": group(
            r"embedding|heads", "", learning_rate=1e-3, b2=0.95, warmup=0.05, final=0.1, clip=1.0
        ),
    }  # fmt: skip
    return ConfigDict(options)


def read_config(config: ConfigDict) -> SpeechConfig:
    """A config file's value -> SpeechConfig. Raises UsageError naming the field and the nearest."""
    sections = config.to_dict()
    groups = sections["optim"].pop("groups", {})
    run = fields.build(SpeechConfig, sections, "", source=config.to_dict(), audio_per_step=0.0)
    built = {n: fields.build(Group, g, f"optim.groups.{n}", name=n) for n, g in groups.items()}
    return dataclasses.replace(run, optim=dataclasses.replace(run.optim, groups=built))


def may_change(path: str) -> bool:
    """Whether the option "section.field" may differ when a run resumes."""
    if path.startswith("optim.groups."):
        return fields.may_change(Group("", ""), path.rpartition(".")[2], allowed=True)
    return fields.may_change(_default(), path)


@functools.cache
def _default() -> SpeechConfig:
    return read_config(default_config())
