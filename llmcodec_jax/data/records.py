"""What every source yields: a named record with sound that is decoded only when it is read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from llmcodec_jax import audio
from llmcodec_jax.audio import AudioError
from llmcodec_jax.data import block_cache, stores

Word = tuple[float, float, str]
"""(start in seconds, end in seconds, the word)."""


TEXT_NAMES = ("text", "transcription", "transcript", "sentence", "text_normalized")
SPEAKER_NAMES = ("speaker_id", "speaker", "client_id")
"""What corpora call a recording's transcript and its speaker, the likeliest first."""


class Sound(Protocol):
    """Audio of known length whose samples are read on demand."""

    rate: int  # Hz
    samples: int  # per channel, at `rate`

    def read(self, start: int, stop: int) -> np.ndarray:
        """Mono float32 [stop - start]. Raises AudioError where the samples cannot be had."""


class EncodedSound:
    """An audio file, on disk, in a store or as bytes; only the piece asked for is decoded."""

    def __init__(self, file: str | Path | bytes, label: str = ""):
        """`label` names the audio in errors; a path names itself."""
        self.label = label or str(file)
        opened = _opened(file) if isinstance(file, str) and stores.is_remote(file) else file
        if isinstance(opened, str | Path) and not Path(opened).is_file():
            raise AudioError(f"{self.label}: no such file")
        self._file = audio.open_file(opened, self.label)
        self.rate, self.samples = self._file.samplerate, self._file.frames
        if not self._file.seekable() or self.samples > 2**40:
            raise AudioError(f"{self.label}: has no known length (a truncated or piped file)")

    def read(self, start: int, stop: int) -> np.ndarray:
        try:
            self._file.seek(start)
            wav = self._file.read(stop - start, dtype="float32", always_2d=True)
        except audio.LIBRARY_ERRORS as error:
            raise AudioError(f"{self.label}: cannot be decoded ({error})") from error
        audio.check_length(len(wav), stop - start, self.label)
        return _checked(wav.mean(axis=1), self.label)


def _opened(uri: str) -> bytes | BinaryIO:
    """A file in a store: a small one whole, of a large one what is asked for."""
    try:
        if block_cache.size(uri) > block_cache.BLOCK:
            return block_cache.open_ranged(uri)
        return block_cache.read(uri)
    except FileNotFoundError as error:
        raise AudioError(f"{uri}: no such file") from error


class ArraySound:
    """Decoded audio: integers (scaled by their type's range) or floats, [N] or [N, channels]."""

    def __init__(self, array: np.ndarray, rate: int, label: str, full_scale: float | None = None):
        """`full_scale` is the value of 1.0, for integers kept in a wider type than they need."""
        if not len(array):
            raise AudioError(f"{label}: holds no samples")
        if full_scale is None:
            integer = np.issubdtype(array.dtype, np.integer)
            full_scale = float(np.iinfo(array.dtype).max) + 1 if integer else 1.0
        self.label, self.rate, self.samples = label, rate, len(array)
        self._array, self._full_scale = array, full_scale

    def read(self, start: int, stop: int) -> np.ndarray:
        wav = np.asarray(self._array[start:stop], np.float32) / np.float32(self._full_scale)
        return _checked(wav.mean(axis=1) if wav.ndim == 2 else wav, self.label)


def _checked(wav: np.ndarray, label: str) -> np.ndarray:
    if not np.isfinite(wav).all():
        raise AudioError(f"{label}: holds NaN or infinite samples")
    return wav


@dataclass(frozen=True)
class Record:
    """One recording and what is known about it."""

    name: str  # unique within its source and independent of where the data lies
    sound: Sound
    text: str | None = None  # the whole recording's transcript
    words: tuple[Word, ...] = ()  # in order of time; empty where no alignment is known
    domain: str | None = None  # one of types.DOMAINS; None leaves it to the mixture
    speaker: str | None = None
    utterance: str | None = None  # the corpus's own id, where the name is another
    uri: str | None = None  # where the audio lies: a path or URI, ARCHIVE#MEMBER


class Source(Protocol):
    """Random access to records; picklable, so that loader processes can hold it."""

    label: str  # short, for logs and example ids: "train-clean-100", "prompts_en"

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The record's name, without opening it."""

    def group(self, index: int) -> str:
        """What must not be split between training and held-out data: the speaker, or the name."""

    def record(self, index: int) -> Record:
        """Opens a record. Raises AudioError naming the file where it is unusable."""


def stable_hash(text: str, bits: int = 32) -> int:
    """The same unsigned integer for the same text on every machine and in every run."""
    data = text.encode("utf-8", "surrogateescape")  # file names need not be text
    return int.from_bytes(hashlib.blake2b(data, digest_size=bits // 8).digest(), "little")


def read_text(path: Path | str) -> str:
    """A UTF-8 file's text. Raises AudioError, as what it says is missing from its recording."""
    try:
        if isinstance(path, str):  # in a store
            return stores.read(path).decode("utf-8-sig").replace("\r\n", "\n")
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AudioError(f"{path}: cannot be read as UTF-8 text ({error})") from error
