"""Audio files in and out: one reader for every format, one resampler, atomic writes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import soundfile
import soxr

from llmcodec_jax import files
from llmcodec_jax.errors import UserError

EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3")


class AudioError(UserError, ValueError):
    """A file that cannot be used as audio; the message names the file and the reason."""


def native(path: str | Path) -> str | bytes:
    """A path as the library takes it: names need not be text everywhere."""
    return str(path) if os.name == "nt" else os.fsencode(path)


def find(folder: str | Path) -> list[Path]:
    """All audio files below `folder`, sorted by path. Raises AudioError where there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise AudioError(f"{folder}: no such folder")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
    if not found:
        raise AudioError(f"{folder}: no audio file ({', '.join(EXTENSIONS)}) below this folder")
    return found


def read(path: str | Path) -> tuple[np.ndarray, int]:
    """File -> (float32 [N, channels] in [-1, 1], sample rate in Hz).

    Raises AudioError for a missing, unreadable or empty file and for non-finite samples.
    """
    try:
        wav, rate = soundfile.read(native(path), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise AudioError(f"{path}: cannot be read as audio ({error})") from error
    if not len(wav):
        raise AudioError(f"{path}: holds no samples")
    if not np.isfinite(wav).all():
        raise AudioError(f"{path}: holds NaN or infinite samples")
    return wav, rate


def resample(wav: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """Band-limited resampling along the first axis; float32, [N] or [N, channels]."""
    if source_rate == target_rate:
        return np.asarray(wav, np.float32)
    return soxr.resample(np.asarray(wav, np.float32), source_rate, target_rate, quality="HQ")


def load(path: str | Path, sample_rate: int) -> np.ndarray:
    """File -> mono float32 [N] at `sample_rate`. Raises AudioError (see `read`)."""
    wav, rate = read(path)
    return resample(wav.mean(axis=1), rate, sample_rate)


def write(path: str | Path, wav: np.ndarray, sample_rate: int) -> None:
    """Writes float [N] as 16-bit .wav or .flac, atomically: readers never see half a file."""
    path = Path(path)
    kind = path.suffix.lower().lstrip(".").upper()
    if kind not in ("WAV", "FLAC"):
        raise AudioError(f"{path}: audio is written as .wav or .flac")
    with files.replacing(path) as partial:
        name, wav = native(partial), np.clip(wav, -1, 1)
        soundfile.write(name, wav, sample_rate, format=kind, subtype="PCM_16")
