"""What every recording of a source sounds like, and which of them are worth keeping.

The pass before `prepare` writes: a row a recording in OUT/survey.jsonl, in the source's order, so
that an interrupted pass goes on where it stopped. Limits are applied to the rows afterwards and
may be changed without listening again.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from llmcodec_jax.audio import AudioError
from llmcodec_jax.data.records import Source
from llmcodec_jax.ops import files

SURVEY = "survey.jsonl"
FRAME = 0.03  # seconds of a frame whose power is looked at
PAUSE_BELOW = 40.0  # dB below the loud frames from which a frame is a pause
_LOUD = 95  # percentile of the frames' powers that stands for the loud ones
_QUIET = 10  # and for the noise between them
_FLOOR = 1e-12  # of power: -120 dB


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a recording must be to be kept; None asks for nothing."""

    min_seconds: float | None = None
    max_seconds: float | None = None
    min_loudness: float | None = None  # dB below full scale, of the frames that are no pause
    min_snr: float | None = None  # dB
    max_silence: float | None = None  # share of frames that are pauses
    deduplicate: bool = False  # of recordings with the same samples the first is kept

    @property
    def asked(self) -> bool:
        """Whether anything is."""
        return any(value not in (None, False) for value in dataclasses.astuple(self))

    def describe(self) -> str:
        """The limits that are set, for the plan of a set; "" where none is."""
        set_ones = {k: v for k, v in dataclasses.asdict(self).items() if v not in (None, False)}
        return json.dumps(set_ones) if set_ones else ""


class Heard(NamedTuple):
    """One recording: levels in dB, or why it cannot be read."""

    name: str
    seconds: float = 0.0
    loudness: float = -120.0
    snr: float = 0.0
    silence: float = 1.0
    digest: str = ""  # of its samples at 16 bits: equal for a copy, whatever lossless form it has
    error: str = ""


def listen(source: Source, index: int) -> Heard:
    """Measures one recording."""
    name = source.name(index)
    try:
        sound = source.record(index).sound
        wav = sound.read(0, sound.samples)
    except AudioError as error:
        return Heard(name, error=str(error))
    pcm = np.round(np.clip(wav, -1, 1) * 32767).astype("<i2")
    digest = hashlib.blake2b(pcm.tobytes() + str(sound.rate).encode(), digest_size=12).hexdigest()
    return Heard(name, len(wav) / sound.rate, *levels(wav, sound.rate), digest)


def levels(wav: np.ndarray, rate: int) -> tuple[float, float, float]:
    """Mono [N] -> (loudness, SNR in dB; share of pauses), from the powers of 30 ms frames.

    Loudness is the power of the frames that are no pause. The noise is taken for what the
    quietest tenth of frames holds, the signal for what the others hold beyond it: an estimate,
    low for sounds without pauses.
    """
    size = max(round(FRAME * rate), 1)
    whole = wav[: len(wav) // size * size] if len(wav) >= size else wav
    frames = whole.astype(np.float64).reshape(-1, min(size, max(len(whole), 1)))
    power = np.mean(np.square(frames), axis=1) + _FLOOR
    loud = np.percentile(power, _LOUD)
    speaking = power > loud * 10 ** (-PAUSE_BELOW / 10)
    noise = np.percentile(power, _QUIET)
    signal = max(power[speaking].mean() - noise, _FLOOR)
    decibels = 10 * np.log10([power[speaking].mean(), signal / noise])
    return round(decibels[0], 2), round(decibels[1], 2), round(1 - speaking.mean(), 4)


def reason_against(heard: Heard, limits: Limits) -> str:
    """Why a recording is left out; "" if it is kept."""
    below = {"min_seconds": heard.seconds, "min_loudness": heard.loudness, "min_snr": heard.snr}
    above = {"max_seconds": heard.seconds, "max_silence": heard.silence}
    if heard.error:
        return "unreadable"
    for names, sign in ((below, 1), (above, -1)):
        for name, value in names.items():
            limit = getattr(limits, name)
            if limit is not None and sign * value < sign * limit:
                return name
    return ""


def choose(rows: Iterable[Heard], limits: Limits) -> tuple[list[int], dict[str, int]]:
    """-> (indices of the recordings that are kept, {reason: how many are left out})."""
    kept, counts, seen = [], collections.Counter(), set()
    for index, heard in enumerate(rows):
        reason = reason_against(heard, limits)
        if not reason and limits.deduplicate:
            reason = "duplicate" if heard.digest in seen else ""
            seen.add(heard.digest)
        if reason:
            counts[reason] += 1
        else:
            kept.append(index)
    return kept, dict(counts)


def survey(
    source: Source,
    output: Path,
    hear: Callable[[Iterable[int]], Iterator[Heard]],
) -> list[Heard]:
    """Every recording's row, those that are in the file already taken from there.

    `hear` maps indices to rows in order, in whatever processes.
    """
    path = output / SURVEY
    rows = _read(path)
    if [row.name for row in rows] != [source.name(i) for i in range(len(rows))]:
        raise AudioError(f"{path}: is of other recordings; delete it to listen again")
    with path.open("a", encoding="utf-8") as file:
        rest = range(len(rows), len(source))
        with tqdm(total=len(source), initial=len(rows), desc="survey", unit="clip") as bar:
            for row in hear(rest):
                file.write(json.dumps(row._asdict()) + "\n")
                rows.append(row)
                bar.update()
    return rows


def _read(path: Path) -> list[Heard]:
    """The rows there are; what a kill cut short is taken off the file."""
    found: list[dict[str, Any]] = files.read_json_lines(path)
    rows = [Heard(**row) for row in found]
    if path.exists():
        with files.replacing(path) as partial:
            partial.write_text("".join(json.dumps(row._asdict()) + "\n" for row in rows), "utf-8")
    return rows
