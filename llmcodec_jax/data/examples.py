"""A record becomes one row of a batch: a crop at the codec's rate, and the words that are in it."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np

from llmcodec_jax.audio import AudioError, resample, warn_of_low_rate
from llmcodec_jax.data.augment import Augment, Companion
from llmcodec_jax.data.records import Record, stable_hash
from llmcodec_jax.data.text import Tokenizer, encode
from llmcodec_jax.errors import UsageError

logger = logging.getLogger(__name__)

TEXT_POLICIES = ("aligned", "transcript")
_CROP_DRAWS = 4  # a long recording may open with silence: look elsewhere before giving it up
_SLACK = 0.02  # seconds by which a word may stick out of its crop

Example = dict[str, np.ndarray]
"""Field of types.Batch -> its value for one clip, without the batch axis."""


@dataclass(frozen=True)
class ExampleMaker:
    """Record -> example, a pure function of the record and its random generator.

    A recording of up to `clip_samples` is used whole; of a longer one a random crop. Text:
    "aligned" keeps the transcript of whole recordings and, for a crop, the words wholly inside
    it where word times are known (no text otherwise); "transcript" pairs the whole transcript
    with any crop, as the published code does. Text of more than `max_text` tokens is dropped,
    not cut, so that text and audio always say the same.
    """

    sample_rate: int  # Hz
    clip_samples: int  # row length, a multiple of hop
    hop: int  # samples per frame of the codec
    text_tokenizer: Tokenizer | None = None  # None: no text
    max_text: int = 128  # tokens
    text_policy: str = "aligned"
    min_seconds: float = 0.3
    silence_peak: float = 1e-3  # of full scale: -60 dB
    augment: Augment | None = None  # changes to every clip; None for held-out ones

    def __post_init__(self):
        if self.clip_samples <= 0 or self.clip_samples % self.hop:
            raise ValueError(f"clip_samples {self.clip_samples} is not a multiple of {self.hop}")
        if self.text_policy not in TEXT_POLICIES:
            raise UsageError(f"text_policy {self.text_policy!r} is not one of {TEXT_POLICIES}")
        if self.max_text < 1:
            raise UsageError("max_text must be at least 1")

    def make(
        self,
        record: Record,
        rng: np.random.Generator,
        domain: int,
        label: str,
        overlap: Companion = lambda rng: None,
        bed: Companion = lambda rng: None,
    ) -> Example:
        """`overlap` and `bed` draw what may sound beneath, where `augment` asks for it.

        Raises AudioError for audio that cannot be read, is too short or is silent.
        """
        speed = 1.0
        if self.augment is not None:
            [changes] = rng.spawn(1)  # the crop's own draws stay what they were
            speed = self.augment.draw_speed(changes)
        wav, start = self.crop(record, rng, speed)
        text = self._text(record, start, start + len(wav) * speed / self.sample_rate)
        if self.augment is not None:
            wav = self.augment.change(wav, self.sample_rate, changes, overlap, bed)
        row = np.zeros(self.clip_samples, np.float32)
        row[: len(wav)] = wav
        ids = np.zeros(self.max_text, np.int32)
        ids[: len(text)] = text
        return {
            "wav": row,
            "wav_length": np.int32(len(wav)),
            "text_ids": ids,
            "text_length": np.int32(len(text)),
            "domain": np.int32(domain),
            "example_id": np.uint32(stable_hash(f"{label}/{record.name}")),
        }

    def blank(self) -> Example:
        """The row that fills up an incomplete evaluation batch: everything masked."""
        return {
            "wav": np.zeros(self.clip_samples, np.float32),
            "wav_length": np.int32(0),
            "text_ids": np.zeros(self.max_text, np.int32),
            "text_length": np.int32(0),
            "domain": np.int32(0),
            "example_id": np.uint32(0),
        }

    def crop(
        self, record: Record, rng: np.random.Generator, speed: float = 1.0
    ) -> tuple[np.ndarray, float]:
        """Record -> (float32 [<= clip_samples] at `sample_rate`, where it starts in seconds).

        Played `speed` times as fast. Raises AudioError.
        """
        sound = record.sound
        played = round(sound.rate * speed)  # the rate at which its samples are taken to be
        needed = math.ceil(self.clip_samples * played / self.sample_rate)
        if sound.samples < self.min_seconds * sound.rate:
            raise AudioError(f"{record.name}: too short, {sound.samples / sound.rate:.2f} s")
        draws = _CROP_DRAWS if sound.samples > needed else 1
        for _ in range(draws):
            start = int(rng.integers(sound.samples - needed + 1)) if draws > 1 else 0
            wav = sound.read(start, min(start + needed, sound.samples))
            if sound.rate < self.sample_rate:
                warn_of_low_rate(sound.rate, self.sample_rate)
            wav = resample(wav, played, self.sample_rate)[: self.clip_samples]
            wav = np.clip(wav, -1.0, 1.0)  # resampling may overshoot
            if np.abs(wav).max(initial=0.0) >= self.silence_peak:
                return wav, start / sound.rate
        raise AudioError(f"{record.name}: silent, no sample reaches {self.silence_peak:g}")

    def _text(self, record: Record, start: float, stop: float) -> list[int]:
        """Token ids of what is said between `start` and `stop` seconds; [] where unknown."""
        if self.text_tokenizer is None:
            return []
        whole = start == 0 and record.sound.samples <= round(stop * record.sound.rate) + 1
        text = record.text or " ".join(word for _, _, word in record.words)
        if self.text_policy == "aligned" and not whole:
            inside = [w for a, b, w in record.words if a >= start - _SLACK and b <= stop + _SLACK]
            text = " ".join(inside)
        ids = encode(self.text_tokenizer, text) if text else []
        if len(ids) > self.max_text:
            logger.debug("%s: text of %d tokens dropped", record.name, len(ids))
            return []
        return ids
