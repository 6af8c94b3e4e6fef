"""How much of a codec's predictability comes from codes that have heard the future?

An encoder that sees the whole clip can put into code t-1 what only the audio after it decides; a
language model then "predicts" code t by reading it off. Here the codes before t are made again
from the audio before t alone. What is left of the gain over the unigram is prediction without
look-ahead: 1 for a causal encoder, and what generation can count on for any other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax.evaluation import audio_lm
from llmcodec_jax.evaluation.audio_lm import AudioLM
from llmcodec_jax.evaluation.protocol import TokenLMProtocol
from llmcodec_jax.evaluation.sampling import by_hash
from llmcodec_jax.evaluation.streams import StartEncoder, Streams

SPACING = 0.25  # seconds between the places to choose from
GROUP = 32  # beginnings of clips that are coded together
_RESAMPLINGS = 1000  # of the interval


class Probes(NamedTuple):
    """Places in held-out clips: the codes before each in two versions, and the code itself."""

    heard: np.ndarray  # int32 [n, tokens], codes of the whole clip, the probed frame last
    unheard: np.ndarray  # int32 [n, tokens], codes before it made without the audio after them
    lengths: np.ndarray  # int32 [n], the probed frame included
    unigram: np.ndarray  # float64 [n], its nats per token without any context
    levels: int


def make_probes(
    streams: Streams,
    protocol: TokenLMProtocol,
    names: Sequence[str],
    unigram: np.ndarray,
    encode_start: StartEncoder,
) -> Probes:
    """At most `protocol.probes` places of the clips `names`, the same times for every codec.

    `unigram`: nats of every token, float [vocabulary].
    """
    levels = streams.levels
    context = (max(round(protocol.seconds * streams.frame_rate), 2) - 1) * levels
    places = []
    for name in names:
        frames = len(streams.clips[name]) // levels
        times = range(1, math.ceil(frames / (SPACING * streams.frame_rate)))
        found = [(name, number, round(number * SPACING * streams.frame_rate)) for number in times]
        places += [place for place in found if 0 < place[2] < frames]
    chosen = by_hash(places, protocol.probes, lambda place: f"{place[0]}@{place[1]}")
    rows: tuple[list, list] = ([], [])
    baseline = []
    for first in range(0, len(chosen), GROUP):
        group = [(name, frame) for name, _, frame in chosen[first : first + GROUP]]
        for (name, frame), start in zip(group, encode_start(group), strict=True):
            clip, place = streams.clips[name], frame * levels
            code = clip[place : place + levels]
            baseline.append(unigram[code].mean())
            for row, before in zip(rows, (clip[:place], start[:place]), strict=True):
                row.append(np.concatenate([before[-context:], code]))
    lengths = np.array([len(row) for row in rows[0]], np.int32)
    size = context + levels  # as long as what the LM was trained on
    heard, unheard = (
        np.stack([np.pad(r, (0, size - len(r))) for r in row]).astype(np.int32)
        if row
        else np.zeros((0, size), np.int32)
        for row in rows
    )
    return Probes(heard, unheard, lengths, np.array(baseline), levels)


def measure(model: AudioLM, probes: Probes, batch: int) -> np.ndarray:
    """Nats per token of every probed frame after (heard, unheard) codes, float [2, n]."""
    found = [[], []]
    for first in range(0, len(probes.lengths), batch):
        lengths = probes.lengths[first : first + batch]
        missing = batch - len(lengths)  # the last batch keeps the compiled shape
        for nats, codes in zip(found, (probes.heard, probes.unheard), strict=True):
            rows = np.pad(codes[first : first + batch], ((0, missing), (0, 0)))
            ends = np.pad(lengths, (0, missing), constant_values=probes.levels)
            nats += np.asarray(_last_frame(model, rows, ends))[: len(lengths)].tolist()
    return np.array(found)


@jax.jit
def _last_frame(model: AudioLM, codes: jax.Array, lengths: jax.Array) -> jax.Array:
    log_probs = audio_lm.token_log_probs(model, codes, lengths)
    last = lengths[:, None] - model.levels + jnp.arange(model.levels)
    return -jnp.take_along_axis(log_probs, last, axis=1).mean(axis=1)


def summarise(probes: Probes, measured: Sequence[np.ndarray]) -> dict | None:
    """Means over models and places, and the share of the gain that is left without look-ahead.

    `interval`: of the share, 95 %, by resampling places; where it is wide, so is what is known.
    None where there is no place, a null share where there is no gain to share.
    """
    if not len(probes.lengths):
        return None
    heard, unheard = np.mean(measured, axis=0)
    gains = np.stack([probes.unigram - unheard, probes.unigram - heard])
    count = gains.shape[1]
    picks = np.random.default_rng(0).integers(0, count, (_RESAMPLINGS, count))
    resampled = gains[:, picks].mean(axis=2)
    left, whole = gains.mean(axis=1)
    shares = resampled[0] / np.where(resampled[1] > 0, resampled[1], np.nan)
    known = whole > 0 and not np.isnan(shares).any()
    return {
        "probes": count,
        "nats": float(heard.mean()),
        "nats_without": float(unheard.mean()),
        "unigram": float(probes.unigram.mean()),
        "share": float(left / whole) if known else None,
        "interval": np.percentile(shares, [2.5, 97.5]).tolist() if known else None,
    }


def in_words(found: dict) -> str:
    """A summary's share with its interval and the places it rests on."""
    if found["share"] is None:
        return f"unknown: no gain at {found['probes']} places"
    low, high = found["interval"]
    return f"{found['share']:.0%} [{low:.0%}, {high:.0%}] at {found['probes']} places"
