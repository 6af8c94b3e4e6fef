"""Token corpora: clips as codes, with their text and voice, from audio or from a table.

A source of audio (`data.sources`) is coded once a codec: what is coded lies in the cache folder
under the codec's digest, in pieces, so that an interrupted run goes on where it stopped. A token
table ("tokens:PATH", `data.token_table`) is read as it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from llmcodec_jax import audio
from llmcodec_jax.audio import AudioError
from llmcodec_jax.codec import tokens
from llmcodec_jax.data.records import Source
from llmcodec_jax.data.token_table import TokenTable
from llmcodec_jax.errors import UserError
from llmcodec_jax.ops import files

logger = logging.getLogger(__name__)

PIECE = 64  # clips of a source that are coded and kept together


class Said(NamedTuple):
    """One turn of a dialogue."""

    role: str  # of `template.ROLES`
    text: str  # "" where it is speech alone
    codes: np.ndarray | None  # int32 [T * Q], None where it is text alone


class Clip(NamedTuple):
    """One recording, or a dialogue's recordings one after the other."""

    name: str
    speaker: str  # "" where it is not known
    text: str  # "" where there is none
    codes: np.ndarray  # int32 [T * Q], indices of `<CODEC_i>`, frame by frame
    turns: tuple[Said, ...] = ()  # of a dialogue
    speed: float = 1.0  # at which the recording was played: another voice than at 1


class CorpusError(UserError, ValueError):
    """Tokens that this codec's speech LM cannot read; the message names the file and the fix."""


def read_coded(
    source: Source, codec, levels: int, cache: Path, speed: float = 1.0
) -> Iterator[Clip]:
    """A source's clips, played at a speed, coded now or earlier."""
    names = "\n".join(source.name(i) for i in range(len(source)))
    played = "" if speed == 1 else f"\n\n{speed}"
    place = hashlib.sha256(f"{source.label}\n{names}{played}".encode("utf-8", "surrogateescape"))
    folder = cache / "speech_tokens" / codec.digest[:16] / place.hexdigest()[:16]
    label = source.label if speed == 1 else f"{source.label} at speed {speed:g}"
    starts = range(0, len(source), PIECE)
    failed: list[str] = []
    told = False
    for start in tqdm(starts, f"tokens of {label}", unit="piece", disable=None):
        path = folder / f"{start:08d}.npz"
        piece = _read_piece(path)
        if piece is None:
            if not told:
                rest = len(source) - start
                logger.info("coding %s, %d of %d clips, into %s", label, rest, len(source), folder)
                told = True
            folder.mkdir(parents=True, exist_ok=True)
            piece = _code(source, range(start, min(start + PIECE, len(source))), codec, speed)
            _write_piece(path, *piece, levels=codec.levels)
        clips, unusable = piece
        failed += unusable
        for clip in clips:
            yield clip._replace(codes=_first_levels(clip.codes, codec, levels), speed=speed)
    if failed:
        logger.warning("%s: %d clips left out: %s", label, len(failed), failed[0])


def _code(source: Source, indices: range, codec, speed: float) -> tuple[list[Clip], list[str]]:
    """Records -> (clips with all levels' codes [T] or [T, Q], reasons of those left out)."""
    clips, failed = [], []
    for index in indices:
        try:
            record = source.record(index)
            wav = record.sound.read(0, record.sound.samples)
            wav = audio.resample(wav, round(record.sound.rate * speed), codec.sample_rate)
        except AudioError as error:
            failed.append(str(error))
            continue
        codes = np.asarray(codec.encode(wav, codec.sample_rate))
        clips.append(Clip(record.name, record.speaker or "", record.text or "", codes))
    return clips, failed


def _first_levels(codes: np.ndarray, codec, levels: int) -> np.ndarray:
    codes = codes if codes.ndim == 1 or levels == codes.shape[1] else codes[:, :levels]
    return tokens.vocabulary_index(codes, codec.codebook_size)


def _write_piece(path: Path, clips: Sequence[Clip], failed: list[str], levels: int) -> None:
    flat = [clip.codes.reshape(-1) for clip in clips]
    about = {
        "clips": [[*clip[:3], len(codes)] for clip, codes in zip(clips, flat, strict=True)],
        "levels": levels,
        "failed": failed,
    }
    with files.replacing(path) as partial, open(partial, "wb") as file:
        codes = np.concatenate([*flat, np.zeros(0, np.int32)]).astype(np.int32)
        np.savez(file, codes=codes, about=json.dumps(about))


def _read_piece(path: Path) -> tuple[list[Clip], list[str]] | None:
    """What `_write_piece` wrote, None where there is nothing whole."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            codes, about = file["codes"], json.loads(str(file["about"]))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        logger.warning("%s: damaged (%s), coded again", path, error)
        return None
    ends = np.cumsum([0, *(row[3] for row in about["clips"])])
    shape = (-1,) if about["levels"] == 1 else (-1, about["levels"])
    return [
        Clip(*row[:3], codes[first:last].reshape(shape))
        for row, first, last in zip(about["clips"], ends, ends[1:], strict=False)
    ], about["failed"]


def read_table(path: str, codec, levels: int) -> Iterator[Clip]:
    """Rows of a token table (`data.token_table`), damaged ones counted and named in the log.

    Raises AudioError where there is no table, CorpusError where it is another codec's.
    """
    table = TokenTable(path)
    held = {"codec": table.codec, "codebook_size": table.codebook_size}
    for name, mine in (("codec", codec.digest), ("codebook_size", codec.codebook_size)):
        if held[name] not in (None, mine):
            raise CorpusError(
                f"{path} was made by another codec: {name} {held[name]}, and this one's is {mine}"
            )
    if table.levels < levels:
        raise CorpusError(f"{path} holds {table.levels} levels; the config asks for {levels}")
    failed = []
    for index in range(len(table)):
        try:
            codes = table.numbers(index).reshape(-1, table.levels)[:, :levels].reshape(-1)
        except AudioError as error:
            failed.append(str(error))
            continue
        speaker = table.group(index)
        known = speaker if speaker != table.name(index) else ""
        yield Clip(table.name(index), known, table.transcript(index) or "", codes)
    if failed:
        logger.warning("%s: %d rows left out: %s", path, len(failed), failed[0])
