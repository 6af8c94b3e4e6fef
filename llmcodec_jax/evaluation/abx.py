"""ABX across voices: do a codec's tokens follow what is said, or who says it?

A and X are the same words from two voices, B is other words from A's voice (Schatz et al. 2013;
ZeroSpeech's across-speaker condition, on words or sentences instead of phones). The tokens fail
where X is no closer to A than to B; the distance is the edit distance of the token sequences over
the longer length, so codecs, levels and units are measured alike. Tokens that know nothing,
or the voice alone, fail half of the time.
"""

from __future__ import annotations

import argparse
import collections
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from llmcodec_jax import audio
from llmcodec_jax.audio import AudioError
from llmcodec_jax.codec import tokens
from llmcodec_jax.data.records import Record, Source
from llmcodec_jax.data.sources import open_source
from llmcodec_jax.data.words import Aligned
from llmcodec_jax.evaluation.additional import edit_distance
from llmcodec_jax.evaluation.reports import EvaluationError, write_json
from llmcodec_jax.evaluation.sampling import by_hash

LETTERS = 4  # of a word that is long enough to be compared
SECONDS = 8.0  # of a sentence that is short enough


class Piece(NamedTuple):
    """Words, who says them, and where they stand."""

    text: str
    voice: str
    record: int  # index in the source
    start: float  # seconds
    end: float


class Triple(NamedTuple):
    """X is A's words by another voice, B other words by A's voice."""

    a: Piece
    b: Piece
    x: Piece


def pieces(source: Source, unit: str) -> list[Piece]:
    """Every "word" (where word times are known) or whole "sentence" of a source."""
    found = []
    for index in range(len(source)):
        try:
            record = source.record(index)
        except AudioError:
            continue
        found += _pieces(record, index, unit)
    return found


def _pieces(record: Record, index: int, unit: str) -> list[Piece]:
    if not record.speaker:
        return []
    if unit == "word":
        return [
            Piece(word.lower(), record.speaker, index, start, end)
            for start, end, word in record.words
            if len(word) >= LETTERS
        ]
    seconds = record.sound.samples / record.sound.rate
    if not record.text or seconds > SECONDS:
        return []
    return [Piece(record.text.lower(), record.speaker, index, 0.0, seconds)]


def triples(found: Sequence[Piece], count: int) -> list[Triple]:
    """At most `count`, chosen by hash, so that every codec gets the same ones.

    B is of the length nearest to A's among a few: length alone must not decide. Raises
    EvaluationError where no words are said by two voices.
    """
    by_text, by_voice = collections.defaultdict(list), collections.defaultdict(list)
    for piece in found:
        by_text[piece.text].append(piece)
        by_voice[piece.voice].append(piece)
    pairs = []
    for same in by_text.values():
        pairs += [(a, x) for a in same for x in same if a.voice != x.voice]
    made = []
    for a, x in by_hash(pairs, count, lambda pair: f"{pair[0]}:{pair[1]}"):
        others = [b for b in by_voice[a.voice] if b.text != a.text]
        few = by_hash(others, 10, lambda b, a=a: f"{a}:{b}")
        if few:
            size = a.end - a.start
            b = min(few, key=lambda b, size=size: abs(b.end - b.start - size))
            made.append(Triple(a, b, x))
    if not made:
        raise EvaluationError(
            "no words are said by two voices: give a corpus whose voices share sentences, or word "
            "times (docs/data.md) and --unit word"
        )
    return made


def evaluate(codec, source: Source, unit: str = "sentence", count: int = 500) -> dict:
    """{"error": share of triples that fail, its "interval", "triples", "unit", "by_voice"}.

    Ties count half. The interval is of 95 %, over voices of A where there are several: triples of
    one voice are no independent draws.
    """
    if unit not in ("word", "sentence"):
        raise EvaluationError(f"--unit is word or sentence, not {unit!r}")
    chosen = triples(pieces(source, unit), count)
    coded: dict[Piece, np.ndarray] = {}
    for piece in tqdm({p for triple in chosen for p in triple}, "encoding", unit="piece"):
        coded[piece] = _encode(codec, source, piece)
    failures = collections.defaultdict(list)
    for triple in chosen:
        a, b, x = (coded[piece] for piece in triple)
        near, far = distance(a, x), distance(b, x)
        failures[triple.a.voice].append(1.0 if near > far else 0.5 if near == far else 0.0)
    every = [failure for voice in failures.values() for failure in voice]
    return {
        "unit": unit,
        "triples": len(every),
        "error": float(np.mean(every)),
        "interval": _interval([float(np.mean(v)) for v in failures.values()], every),
        "by_voice": {voice: float(np.mean(v)) for voice, v in sorted(failures.items())},
    }


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Edit distance over the longer length, in [0, 1]."""
    return edit_distance(first, second) / max(len(first), len(second), 1)


def _encode(codec, source: Source, piece: Piece) -> np.ndarray:
    sound = source.record(piece.record).sound
    wav = sound.read(round(piece.start * sound.rate), round(piece.end * sound.rate))
    wav = audio.resample(wav, sound.rate, codec.sample_rate)
    codes = np.asarray(codec.encode(wav, codec.sample_rate))
    return tokens.vocabulary_index(codes, codec.codebook_size)


def _interval(voices: list[float], every: list[float]) -> float | None:
    """Half of the 95 % interval of the mean."""
    values = voices if len(voices) > 2 else every
    if len(values) < 2:
        return None
    return float(1.96 * np.std(values, ddof=1) / math.sqrt(len(values)))


def run(args: argparse.Namespace, open_codec) -> int:
    """Whether tokens follow what is said or who says it."""
    source = open_source(args.data)
    source = Aligned(source, args.alignments) if args.alignments else source
    report = {"codec": str(args.codec)}
    report |= evaluate(open_codec(args.codec), source, args.unit, args.triples)
    write_json(Path(args.output), report)
    half = "" if report["interval"] is None else f" ± {report['interval']:.3f}"
    print(f"ABX error across voices {report['error']:.3f}{half} over {report['triples']} triples")
    return 0


def add_parser(commands, open_codec) -> None:
    """The sub-command `abx` of `evaluate`; `open_codec` opens what --codec names."""
    parser = commands.add_parser(
        "abx", help="ABX error across voices: what is said, or who says it"
    )
    parser.add_argument("--codec", required=True, help="whose tokens; or units")
    parser.add_argument("--data", required=True, help="librispeech:DIR, ... with voices and texts")
    parser.add_argument("--unit", default="sentence", choices=("sentence", "word"))
    parser.add_argument("--alignments", help="folder of word times, for --unit word")
    parser.add_argument("--triples", type=int, default=500, help="at most (default: 500)")
    parser.add_argument("--output", default="abx.json", help="default: abx.json")
    parser.set_defaults(run=functools.partial(run, open_codec=open_codec))
