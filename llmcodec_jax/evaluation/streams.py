"""Token streams: what a codec makes of a folder of clips, or a folder of ready `.npz` tokens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from llmcodec_jax import audio
from llmcodec_jax.codec import tokens
from llmcodec_jax.data.records import stable_hash
from llmcodec_jax.evaluation.reports import EvaluationError


@dataclasses.dataclass(frozen=True)
class Streams:
    """Clips as token sequences under one vocabulary.

    Codecs with several codebooks are flattened frame by frame: token i of codebook q is number
    q * codebook_size + i, and the rate counts all of them.
    """

    clips: dict[str, np.ndarray]  # name (path without extension) -> int32 [frames * levels]
    codebook_size: int  # V, codes of one level
    levels: int  # Q, codebooks
    frame_rate: float  # frames per second
    held_out: frozenset[str] | None = None  # if given, where development and test clips come from

    @property
    def tokens_per_second(self) -> float:
        """Tokens a language model must predict for one second of audio."""
        return self.frame_rate * self.levels

    @property
    def vocabulary(self) -> int:
        """Tokens in all levels together."""
        return self.codebook_size * self.levels

    def split(self) -> tuple[list[str], list[str], list[str]]:
        """Names of training, development and test clips (80, 10, 10 %), by hash of the name.

        Every codec gets the same split of the same clips. With `held_out`, its clips are halved
        into development and test, and all others train.
        """
        names = sorted(self.clips, key=stable_hash)
        held = max(len(names) // 10, 1)
        if self.held_out is not None:
            names.sort(key=lambda name: name not in self.held_out)
            held = len(self.held_out) // 2
        if len(names) < 3 or not held:
            raise EvaluationError("a token LM needs at least three clips to split")
        return sorted(names[2 * held :]), sorted(names[:held]), sorted(names[held : 2 * held])


def from_codec(codec, folder: Path) -> Streams:
    """Encodes every clip of a folder."""
    clips = {}
    for path in tqdm(audio.find(folder), "encoding", unit="clip"):
        codes = np.asarray(codec.encode(audio.load(path, codec.sample_rate), codec.sample_rate))
        clips[_name(path, folder)] = tokens.vocabulary_index(codes, codec.codebook_size)
    levels = 1 if codes.ndim == 1 else codes.shape[1]
    return Streams(clips, codec.codebook_size, levels, codec.frame_rate)


def from_token_files(folder: Path, codebook_size: int | None = None) -> Streams:
    """Reads a folder of token files, whoever made them (see `codec.tokens`).

    Without `codebook_size` the largest code decides it. Raises EvaluationError where files
    disagree about their number of codebooks, or a code is out of range.
    """
    paths = sorted(folder.rglob("*.npz"))
    if not paths:
        raise EvaluationError(f"{folder}: no .npz token file below this folder")
    read = {path: tokens.read(path) for path in paths}
    shapes = {entry.codes.shape[1:] for entry in read.values()}
    if len(shapes) > 1:
        raise EvaluationError(f"{folder}: token files with different codebook counts {shapes}")
    largest = max(int(entry.codes.max()) for entry in read.values())
    smallest = min(int(entry.codes.min()) for entry in read.values())
    codebook_size = codebook_size or largest + 1
    if smallest < 0 or largest >= codebook_size:
        raise EvaluationError(f"{folder}: codes {smallest}..{largest}, not in [0, {codebook_size})")
    frames = sum(len(entry.codes) for entry in read.values())
    seconds = sum(entry.num_samples / entry.sample_rate for entry in read.values())
    clips = {
        _name(path, folder): tokens.vocabulary_index(entry.codes, codebook_size)
        for path, entry in read.items()
    }
    levels = next(iter(shapes), ())
    return Streams(clips, codebook_size, levels[0] if levels else 1, frames / seconds)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def statistics_of(streams: Streams, training: Sequence[str], test: Sequence[str]) -> dict:
    """What is known of the tokens without their order.

    `entropy`: nats of the empirical distribution of all tokens, averaged over levels; `nats`:
    cross-entropy on the test clips of the training distribution mixed with the uniform one (the
    best share, so that the baseline is as strong as it can be); `codes_used` and `effective`
    (exp of the entropy) as shares of what a uniform stream of this length would reach.
    """
    everything = np.concatenate(list(streams.clips.values()))
    counts = np.bincount(everything, minlength=streams.vocabulary).astype(float)
    counts = counts.reshape(streams.levels, streams.codebook_size)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    entropy = -np.sum(share * np.log(np.maximum(share, 1e-30)), axis=1)
    expected = streams.codebook_size * -np.expm1(-counts.sum(axis=1) / streams.codebook_size)
    return {
        "entropy": float(entropy.mean()),
        "nats": _cross_entropy(streams, training, test),
        "codes_used": float(np.mean((counts > 0).sum(axis=1) / expected)),
        "effective": float(np.mean(np.exp(entropy) / expected)),
    }


def _cross_entropy(streams: Streams, training: Sequence[str], test: Sequence[str]) -> float:
    counts = [
        np.bincount(
            np.concatenate([streams.clips[n] for n in names]), minlength=streams.vocabulary
        ).reshape(streams.levels, -1)
        for names in (training, test)
    ]
    learned = counts[0] / np.maximum(counts[0].sum(axis=1, keepdims=True), 1)
    shares = np.linspace(0, 0.999, 200)
    losses = [
        -np.sum(counts[1] * np.log(s * learned + (1 - s) / streams.codebook_size)) for s in shares
    ]
    return float(min(losses) / counts[1].sum())


def flags(streams: Streams, statistics: dict, reconstruction: dict | None) -> list[str]:
    """Reasons not to trust a low perplexity."""
    found = []
    if statistics["effective"] < 0.1:
        found.append(
            f"collapsed: the codes in effective use are {statistics['effective']:.1%} of what this "
            f"many tokens could use ({math.exp(statistics['entropy']):.0f} of "
            f"{streams.codebook_size}); its low perplexity is bought, not earned"
        )
    if reconstruction is None:
        found.append(
            "no reconstruction beside it: predictability can be bought by throwing audio away "
            "(give --data with --codec, or --reconstruction report.json)"
        )
    return found
