"""Audio files in and out: one reader for every format, one resampler, atomic writes."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from llmcodec_jax.errors import UserError
from llmcodec_jax.ops import files

logger = logging.getLogger(__name__)

EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3")
LIBRARY_ERRORS = (soundfile.LibsndfileError, OSError, RuntimeError)
"""What reading audio may raise, before it becomes an AudioError."""
_SUBTYPES = {".wav": ("PCM_16", "FLOAT"), ".flac": ("PCM_16", "PCM_24")}
_BLOCK = 1 << 20  # samples read at a time: a header that lies costs no memory
_UNKNOWN_LENGTH = 0x7FFFFF00  # bytes; what writes into a pipe puts such a length or more
_OGG_PAGE = 65_307  # bytes, at most


class AudioError(UserError, ValueError):
    """A file that cannot be used as audio; the message names the file and the reason."""


def native(path: str | Path) -> str | bytes:
    """A path as the library takes it: names need not be text everywhere."""
    return str(path) if os.name == "nt" else os.fsencode(path)


def find(folder: str | Path) -> list[Path]:
    """All audio files below `folder`, sorted by path; a warning says what is left out.

    See `files.find`. Raises AudioError where there is none.
    """
    if not Path(folder).is_dir():
        raise AudioError(f"{folder}: no such folder")
    found, left_out = files.find(folder, EXTENSIONS)
    check_found(folder, found, left_out)
    return found


def check_found(folder: str | Path, found: Sequence, left_out: Sequence[str]) -> None:
    """Tells what was left out of a folder. Raises AudioError where no audio was found."""
    if not found:
        kinds, but = ", ".join(EXTENSIONS), "; ".join(["", *left_out])
        raise AudioError(f"{folder}: no audio file ({kinds}) below this folder{but}")
    if left_out:
        logger.warning("%s: left out %s", folder, ", ".join(left_out))


def open_file(file: str | Path | bytes | BinaryIO, label: str = "") -> soundfile.SoundFile:
    """Opens a file, its bytes or an open binary file for reading; `label` names it in errors.

    Raises AudioError where it is missing, no audio, empty, or shorter than its header says.
    """
    label = label or str(file)
    try:
        given = io.BytesIO(file) if isinstance(file, bytes) else file
        opened = soundfile.SoundFile(native(given) if isinstance(given, str | Path) else given)
        if opened.frames <= 0:
            raise AudioError(f"{label}: holds no samples")
        cut = _truncation(opened, file)
    except LIBRARY_ERRORS as error:
        raise AudioError(f"{label}: cannot be read as audio ({error})") from error
    if cut:
        raise AudioError(f"{label}: truncated, {cut}; copy it again")
    return opened


def _truncation(opened: soundfile.SoundFile, file: str | Path | bytes | BinaryIO) -> str:
    """How a file shows that its end is missing, where its decoder would not mind; "" if whole."""
    if opened.format in ("WAV", "WAVEX"):
        sizes = re.search(r"^data : (\d+) \(should be (\d+)\)", opened.extra_info, re.MULTILINE)
        promised, there = map(int, sizes.groups()) if sizes else (0, 0)
        if there < promised < _UNKNOWN_LENGTH:
            return f"{there} of {promised} bytes of samples are there"
    if opened.format == "OGG":
        if isinstance(file, bytes):
            end = file[-_OGG_PAGE:]
        elif isinstance(file, str | Path):
            with open(file, "rb") as stream:
                end = _last(stream)
        else:
            place, end = file.tell(), _last(file)
            file.seek(place)
        page = end[end.rfind(b"OggS") :]
        segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
        # Bit 2 of the flags marks the last page; the sizes of its segments say where it ends.
        if len(page) < 27 or not page[5] & 4 or len(page) < 27 + len(segments) + sum(segments):
            return "its last page is missing"
    return ""


def _last(stream: BinaryIO) -> bytes:
    stream.seek(max(stream.seek(0, io.SEEK_END) - _OGG_PAGE, 0))
    return stream.read()


def read(path: str | Path) -> tuple[np.ndarray, int]:
    """File -> (float32 [N, channels] in [-1, 1], sample rate in Hz).

    Raises AudioError for a missing, unreadable, empty or truncated file and for non-finite samples.
    """
    pieces = []
    with open_file(path) as file:
        try:
            while len(piece := file.read(_BLOCK, dtype="float32", always_2d=True)):
                pieces.append(piece)
        except LIBRARY_ERRORS as error:
            raise AudioError(f"{path}: cannot be decoded ({error})") from error
        wav, rate, promised = np.concatenate(pieces or [[]]), file.samplerate, file.frames
    check_length(len(wav), promised, str(path))
    if not np.isfinite(wav).all():
        raise AudioError(f"{path}: holds NaN or infinite samples")
    return wav, rate


def check_length(samples: int, promised: int, label: str) -> None:
    """Raises AudioError where a decoder gave far fewer samples than the file announces.

    Decoders of lossy formats may estimate the length; a cut file misses more than one in a hundred.
    """
    if samples < 0.99 * promised:
        raise AudioError(f"{label}: truncated, {samples} of {promised} samples; copy it again")


def resample(wav: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """Band-limited resampling along the first axis; float32, [N] or [N, channels]."""
    if source_rate == target_rate:
        return np.asarray(wav, np.float32)
    return soxr.resample(np.asarray(wav, np.float32), source_rate, target_rate, quality="HQ")


def resample_blocks(
    blocks: Iterable[np.ndarray], source_rate: int, target_rate: int
) -> Iterator[np.ndarray]:
    """`resample` of mono float32 blocks [n] that follow each other, in flat memory."""
    if source_rate == target_rate:
        yield from blocks
        return
    resampler = soxr.ResampleStream(source_rate, target_rate, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield resampler.resample_chunk(block)
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


@functools.cache
def warn_of_low_rate(rate: int, sample_rate: int) -> None:
    """Says once a process that audio of `rate` Hz lacks what a codec of `sample_rate` Hz hears."""
    logger.warning(
        "%d Hz audio for a %d Hz codec: nothing above %d Hz is in it", rate, sample_rate, rate // 2
    )


def load(path: str | Path, sample_rate: int) -> np.ndarray:
    """File -> mono float32 [N] at `sample_rate`. Raises AudioError (see `read`)."""
    wav, rate = read(path)
    if rate < sample_rate:
        warn_of_low_rate(rate, sample_rate)
    return resample(wav.mean(axis=1), rate, sample_rate)


@contextlib.contextmanager
def create(
    path: str | Path, sample_rate: int, exact: bool = False
) -> Iterator[soundfile.SoundFile]:
    """An open mono .wav or .flac to write float pieces to; it is there once the block ends well.

    16-bit; `exact` is for audio that is measured: 32-bit float .wav (not even clipped) or 24-bit
    .flac. Rounding to 16 bits alone moves a log-spectral distance in near-silence by a tenth.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in _SUBTYPES:
        raise AudioError(f"{path}: audio is written as .wav or .flac")
    form, subtype = kind.removeprefix(".").upper(), _SUBTYPES[kind][exact]
    with files.replacing(path) as partial:
        name = native(partial)
        try:
            with soundfile.SoundFile(name, "w", sample_rate, 1, subtype, format=form) as file:
                yield file
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{path}: cannot be written ({error})") from error


def write(path: str | Path, wav: np.ndarray, sample_rate: int, *, exact: bool = False) -> None:
    """Writes float [N] as .wav or .flac, atomically (see `create`)."""
    with create(path, sample_rate, exact=exact) as file:
        file.write(wav)
