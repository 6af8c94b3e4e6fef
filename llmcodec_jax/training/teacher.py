"""Where the targets of distillation come from: a frozen speech encoder beside the data.

The teacher hears each batch on its way to the devices, before the step; what it says travels with
the batch. So no step carries its weights, and any encoder will do that runs anywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax import audio
from llmcodec_jax.errors import UsageError
from llmcodec_jax.losses.distillation import at_frames
from llmcodec_jax.training.method import Distillation
from llmcodec_jax.types import Batch, Codec

WHISPER = "whisper"
WHISPER_SECONDS = 30.0


class Teacher(Protocol):
    """What hears a clip."""

    width: int  # D of its features

    def __call__(self, wav: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mono 16 kHz float32 [B, N], samples int [B] -> (features [B, S, D], centres s [S])."""


class EncoderTeacher:
    """One layer of HuBERT or wav2vec 2.0, or the mean of all."""

    def __init__(self, path: str, layer: int):
        """`layer` counts like `hidden_states`, -1: their mean. Raises UsageError."""
        from llmcodec_jax.semantics import published

        self._encoder, variables = published.load(path)
        if not -1 <= layer <= self._encoder.layers:
            raise UsageError(f"distillation.layer={layer}: {path} has 0 to {self._encoder.layers}")
        self._variables = jax.device_put(variables)
        self.width = self._encoder.width

        def chosen(variables, wav, length):
            heard: Any = self._encoder.apply(variables, wav, length)
            features, frames = heard
            found = features.mean(axis=0) if layer < 0 else features[layer]
            # Past a clip's own frames the last one is held.
            held = jnp.minimum(jnp.arange(found.shape[1]), jnp.maximum(frames - 1, 0)[:, None])
            return jnp.take_along_axis(found, held[..., None], axis=1)

        self._apply = jax.jit(chosen)

    def __call__(self, wav: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features = self._apply(self._variables, wav, lengths.astype(np.int32))
        # A frame of the published strides hears 400 samples.
        centres = (np.arange(features.shape[1]) * self._encoder.hop + 200) / audio_rate()
        return np.asarray(features), centres


class WhisperTeacher:
    """Whisper's encoder (tiny.en: 384 wide, 50 frames a second), through CTranslate2."""

    width = 384

    def __init__(self) -> None:
        from llmcodec_jax.evaluation import whisper

        self._model = whisper.recogniser()
        self.width = int(self._hear(np.zeros(1600, np.float32)).shape[1])

    def _hear(self, wav: np.ndarray) -> np.ndarray:
        """Mono 16 kHz [N], at most 30 s -> [1500, D]."""
        size = round(WHISPER_SECONDS * audio_rate())
        if len(wav) > size:
            raise UsageError(f"distillation: Whisper hears {WHISPER_SECONDS:.0f} s at a time")
        mel = self._model.feature_extractor(np.pad(wav, (0, size - len(wav))))
        frames = round(WHISPER_SECONDS * 100)
        return np.array(self._model.encode(mel[:, :frames]), np.float32)[0]

    def __call__(self, wav: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        frames = -(-wav.shape[1] // 320)
        clips = (one[:length] for one, length in zip(wav, lengths, strict=True))
        return np.stack([self._hear(clip)[:frames] for clip in clips]), np.arange(frames) * 0.02


def audio_rate() -> int:
    """Hz at which every teacher listens."""
    return 16_000


def open_teacher(config: Distillation) -> Teacher:
    """The config's teacher. Raises UsageError where its features are not as wide as stated."""
    teacher: Teacher
    if config.teacher == WHISPER:
        teacher = WhisperTeacher()
    else:
        teacher = EncoderTeacher(config.teacher, config.layer)
    if teacher.width != config.width:
        raise UsageError(
            f"distillation.width={config.width}, but {config.teacher} is {teacher.width} wide"
        )
    return teacher


def with_features(teacher: Teacher, codec: Codec) -> Callable[[Batch], Batch]:
    """A batch (numpy) -> the same with the teacher's features at the codec's frames."""
    hop, move = codec.hop / codec.sample_rate, jax.jit(at_frames, static_argnums=(2, 3))

    def add(batch: Batch) -> Batch:
        wav = np.asarray(batch.wav)
        heard = np.stack([audio.resample(w, codec.sample_rate, audio_rate()) for w in wav])
        lengths = np.ceil(np.asarray(batch.wav_length) * audio_rate() / codec.sample_rate)
        features, centres = teacher(heard, lengths.astype(np.int64))
        frames = wav.shape[1] // codec.hop
        moved = move(jnp.asarray(features), jnp.asarray(centres), frames, hop)
        return dataclasses.replace(batch, features=np.asarray(moved, np.float32))

    return add
