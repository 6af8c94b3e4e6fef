"""What the tests share: a shrunk codec, a shrunk language model, sounds and corpora of our own."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax import audio
from llmcodec_jax.data.batches import Batches
from llmcodec_jax.data.examples import ExampleMaker
from llmcodec_jax.data.pipeline import HeldOut, Loader, eval_batches
from llmcodec_jax.data.sources import Part, open_mixture
from llmcodec_jax.lm.config import LMConfig

RATE = 16_000
WORDS = "one two three four five six seven eight nine ten call door open close the a".split()
TONE_RATE = 8000
"""Of `tone` and `write_corpus`: not the codecs' rate, so that resampling is always part of it."""
SMALL = dict(
    width=32, encoder_layers=2, decoder_layers=1, head_dim=16, codebook_size=96, conv_kernel=7
)


def init(codec, seed=0):
    """Fresh {"params", "batch_stats"} for any AUV."""
    wav = jnp.zeros((1, 4 * codec.hop))
    return jax.jit(lambda key: codec.init(key, wav, method="reconstruct"))(jax.random.key(seed))


def tiny_lm_config(layers: int = 4) -> LMConfig:
    """A Qwen3 of a few thousand parameters."""
    return LMConfig(
        vocab_size=64,
        width=32,
        layers=layers,
        heads=4,
        kv_heads=2,
        head_dim=8,
        ffn_width=48,
        qk_norm=True,
        tied=True,
    )


def babble(seconds: float, seed: int, rate: int = RATE) -> np.ndarray:
    """Voiced-like sound: a gliding buzz under a syllable-like envelope, with a little noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    pitch = rng.uniform(90, 220) * (1 + 0.2 * np.sin(2 * np.pi * rng.uniform(0.5, 2) * time))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    buzz = sum(np.sin(k * phase) / k for k in range(1, 12))
    envelope = 0.15 + np.clip(np.sin(2 * np.pi * rng.uniform(2, 5) * time + seed), 0, 1)
    wav = 0.15 * buzz * envelope + 0.005 * rng.normal(size=len(time))
    return np.clip(wav, -1, 1).astype(np.float32)


def tone(seconds: float, pitch: float = 220.0, rate: int = TONE_RATE) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * pitch * time)).astype(np.float32)


def write_corpus(folder: Path, speakers: int = 3, clips: int = 6) -> Path:
    """Clips of 0.5 to 2.25 s at 8 kHz with a transcript each."""
    for speaker in range(1, 1 + speakers):
        chapter = folder / str(speaker) / "7"
        lines = []
        for number in range(clips):
            name = f"{speaker}-7-{number:04d}"
            seconds = 0.5 + 0.35 * number
            audio.write(
                chapter / f"{name}.flac", tone(seconds, 100 * speaker + 10 * number), TONE_RATE
            )
            lines.append(f"{name} SPEAKER {speaker} SAYS {number}\n")
        (chapter / f"{speaker}-7.trans.txt").write_text("".join(lines))
    return folder


class Letters:
    """A tokenizer: one token per character."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def spell(ids, length) -> str:
    return "".join(chr(i) for i in ids[:length])


def make_loader(sources, split: str = "train", **options) -> Loader:
    """A loader of `sources`; options go to whom they concern: mixture, maker, batches, loader."""
    parts, maker = open_parts(sources, split, options)
    own = [name for name in ("workers", "threads", "buffer") if name in options]
    loading = {name: options.pop(name) for name in own}
    return Loader(Batches(parts, maker, **{"seed": 0} | options), **loading)


def make_eval_batches(sources, split: str = "eval", **options) -> HeldOut:
    """`eval_batches` of `sources`; options as above."""
    return eval_batches(*open_parts(sources, split, options), **options)


def open_parts(sources, split: str, options: dict) -> tuple[list[Part], ExampleMaker]:
    """Takes what concerns the mixture and the maker out of `options`."""
    mixed = ("alignments", "cache", "eval_fraction", "eval_max", "by")
    mixture = {name: options.pop(name) for name in mixed if name in options}
    fields = [field.name for field in dataclasses.fields(ExampleMaker) if field.name in options]
    maker = ExampleMaker(**{name: options.pop(name) for name in fields})
    return open_mixture(sources, split, **mixture), maker
