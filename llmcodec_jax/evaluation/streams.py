"""Token streams: what a codec makes of a folder of clips, or a folder of ready `.npz` tokens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
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
    unseen: frozenset[str] = frozenset()  # clips that are tested on apart, and nothing else

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
        names = sorted(self.clips.keys() - self.unseen, key=stable_hash)
        held = max(len(names) // 10, 1)
        if self.held_out is not None:
            names.sort(key=lambda name: name not in self.held_out)
            held = len(self.held_out) // 2
        if len(names) < 3 or not held:
            raise EvaluationError("a token LM needs at least three clips to split")
        return sorted(names[2 * held :]), sorted(names[:held]), sorted(names[held : 2 * held])


StartEncoder = Callable[[Sequence[tuple[str, int]]], list[np.ndarray]]
"""(clip's name, frames) each -> the tokens of its first frames, coded as if no more followed."""


def from_codec(codec, folder: Path) -> tuple[Streams, dict[str, str]]:
    """Encodes every clip of a folder -> tokens, and the clips that failed: {name: reason}."""
    clips, failed = {}, {}
    for path in tqdm(audio.find(folder), "encoding", unit="clip"):
        try:
            codes = np.asarray(codec.encode(_heard(codec, path), codec.sample_rate))
        except audio.AudioError as error:
            failed[_name(path, folder)] = str(error)
            continue
        clips[_name(path, folder)] = tokens.vocabulary_index(codes, codec.codebook_size)
    return Streams(clips, codec.codebook_size, codec.levels, codec.frame_rate), failed


def first_levels(
    streams: Streams, levels: int, encode_start: StartEncoder | None
) -> tuple[Streams, StartEncoder | None]:
    """The same clips with the first `levels` codes of every frame alone."""

    def cut(codes: np.ndarray) -> np.ndarray:
        return codes.reshape(-1, streams.levels)[:, :levels].reshape(-1)

    clips = {name: cut(codes) for name, codes in streams.clips.items()}
    fewer = dataclasses.replace(streams, clips=clips, levels=levels)
    if encode_start is None:
        return fewer, None
    return fewer, lambda starts: [cut(codes) for codes in encode_start(starts)]


def start_encoder(codec, folder: Path) -> StartEncoder:
    """Encodes beginnings of the clips that `from_codec` names."""
    paths = {_name(path, folder): path for path in audio.find(folder)}
    return encode_starts(codec, lambda name: _heard(codec, paths[name]))


def encode_starts(codec, load: Callable[[str], np.ndarray]) -> StartEncoder:
    """`load(name)`: a clip at the codec's rate, float32 [N]."""
    hop = round(codec.sample_rate / codec.frame_rate)

    def encode(starts: Sequence[tuple[str, int]]) -> list[np.ndarray]:
        wavs = [load(name)[: frames * hop] for name, frames in starts]
        return [
            tokens.vocabulary_index(np.asarray(codes), codec.codebook_size)
            for codes in codec.encode(wavs, codec.sample_rate)
        ]

    return encode


def _heard(codec, path: Path) -> np.ndarray:
    wav = audio.load(path, codec.sample_rate)
    if not len(wav):
        raise audio.AudioError(f"{path}: too short to code")
    return wav


def from_token_files(folder: Path, codebook_size: int | None = None) -> Streams:
    """Reads a folder of token files, whoever made them (see `codec.tokens`).

    The files say how many codes a level has; for older ones `codebook_size` does, or else the
    largest code. Raises EvaluationError where files were made by different codecs, or a code is out
    of range.
    """
    paths = sorted(folder.rglob("*.npz"))
    if not paths:
        raise EvaluationError(f"{folder}: no .npz token file below this folder")
    read = {path: tokens.read(path) for path in paths}
    if len({(entry.codec, entry.codebook_size, entry.hop) for entry in read.values()}) > 1:
        raise EvaluationError(f"{folder}: token files of different codecs")
    shapes = {entry.codes.shape[1:] for entry in read.values()}
    if len(shapes) > 1:
        raise EvaluationError(f"{folder}: token files with different codebook counts {shapes}")
    largest = max(int(entry.codes.max()) for entry in read.values())
    smallest = min(int(entry.codes.min()) for entry in read.values())
    first = next(iter(read.values()))
    codebook_size = first.codebook_size or codebook_size or largest + 1
    if smallest < 0 or largest >= codebook_size:
        raise EvaluationError(f"{folder}: codes {smallest}..{largest}, not in [0, {codebook_size})")
    frames = sum(len(entry.codes) for entry in read.values())
    seconds = sum(entry.num_samples / entry.sample_rate for entry in read.values())
    clips = {
        _name(path, folder): tokens.vocabulary_index(entry.codes, codebook_size)
        for path, entry in read.items()
    }
    levels = next(iter(shapes), ())
    frame_rate = first.sample_rate / first.hop if first.hop else frames / seconds
    return Streams(clips, codebook_size, levels[0] if levels else 1, frame_rate)


def from_table(path: str) -> Streams:
    """Reads a token table (`data.token_table`), the `tokens:PATH` of `encode --engine`."""
    from llmcodec_jax.data.token_table import TokenTable

    table = TokenTable(path)
    if table.codebook_size is None:
        raise EvaluationError(f"{path}: does not say how many codes the codec has")
    clips = dict(tqdm(table, "reading", unit="clip", total=len(table), disable=None))
    return Streams(clips, table.codebook_size, table.levels, table.frame_rate)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def statistics_of(
    streams: Streams, training: Sequence[str], test: Sequence[np.ndarray]
) -> tuple[dict, np.ndarray]:
    """What is known of the tokens without their order; and the unigram's nats of every token.

    `entropy`: nats of the empirical distribution of all tokens, averaged over levels; `nats`:
    cross-entropy on the stretches `test` (those that the LM is scored on) of the training
    distribution mixed with the uniform one (the best share, so that the baseline is as strong as
    it can be); `codes_used` and `effective` (exp of the entropy) as shares of what a uniform
    stream of this length would reach; `repeats`: share of the tokens of all clips that equal the
    one before in their level. An LM's nats fall with repetition though the entropy may not.
    """
    everything = np.concatenate([c for n, c in streams.clips.items() if n not in streams.unseen])
    counts = np.bincount(everything, minlength=streams.vocabulary).astype(float)
    counts = counts.reshape(streams.levels, streams.codebook_size)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    entropy = -np.sum(share * np.log(np.maximum(share, 1e-30)), axis=1)
    expected = streams.codebook_size * -np.expm1(-counts.sum(axis=1) / streams.codebook_size)
    unigram = unigram_nats(streams, training, test)
    tested = np.concatenate(list(test))
    statistics = {
        "entropy": float(entropy.mean()),
        "nats": float(unigram[tested].mean()),
        "codes_used": float(np.mean((counts > 0).sum(axis=1) / expected)),
        "effective": float(np.mean(np.exp(entropy) / expected)),
        "repeats": _repeats(streams),
    }
    return statistics, unigram


def unigram_nats(
    streams: Streams, training: Sequence[str], test: Sequence[np.ndarray]
) -> np.ndarray:
    """Nats of every token, float [vocabulary]: see `statistics_of`."""
    learned = [streams.clips[name] for name in training]
    known, tested = (
        np.bincount(np.concatenate(list(rows)), minlength=streams.vocabulary).reshape(
            streams.levels, -1
        )
        for rows in (learned, test)
    )
    known = known / np.maximum(known.sum(axis=1, keepdims=True), 1)
    mixtures = (s * known + (1 - s) / streams.codebook_size for s in np.linspace(0, 0.999, 200))
    nats = min((-np.log(mixture) for mixture in mixtures), key=lambda n: np.sum(tested * n))
    return nats.reshape(-1)


def _repeats(streams: Streams) -> float:
    repeated = places = 0
    for clip in (c for n, c in streams.clips.items() if n not in streams.unseen):
        frames = clip.reshape(-1, streams.levels)
        repeated += int((frames[1:] == frames[:-1]).sum())
        places += frames[1:].size
    return repeated / max(places, 1)


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
