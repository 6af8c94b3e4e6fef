"""The two ways of writing speech, as one: levels in turns (`lm.generate`), or frames (`lm.frames`).

Limits and counts are in frames; what was written is read as ids frame by frame, <end> at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax.errors import UsageError
from llmcodec_jax.lm import frames, generate
from llmcodec_jax.lm.sampling import Sampling
from llmcodec_jax.speech_lm.method import embed
from llmcodec_jax.speech_lm.template import NOTHING, Vocabulary

PROMPTS = (64, 128, 256, 512, 1024, 2048, 4096)
"""Padded lengths of prompts in tokens: each is one compilation."""


def padded(prompts: Sequence[np.ndarray], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts int32 [S] or [S, Q] -> (ids [rows, one of PROMPTS, ...], lengths int32 [rows]).

    Rows that no prompt fills have length 1. Raises UsageError for one that is too long.
    """
    longest = max(map(len, prompts))
    size = next((s for s in PROMPTS if longest <= s), None)
    if size is None:
        raise UsageError(f"a prompt of {longest} tokens is longer than {PROMPTS[-1]}")
    ids = np.zeros((rows, size, *prompts[0].shape[1:]), np.int32)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
    return ids, np.array([*map(len, prompts), *[1] * (rows - len(prompts))], np.int32)


class Turns:
    """A token a position, several heads' worth of them a pass."""

    def __init__(self, writer: generate.Writer, vocabulary: Vocabulary, limit: int):
        """limit: frames at most."""
        self._writer, self._words, self._limit = writer, vocabulary, limit
        self._end = vocabulary.mark("<end>")

    def begin(self, prompts: np.ndarray, lengths, before: np.ndarray, keys, sampling: Sampling):
        """prompts int32 [B, S], right-padded, of `lengths`; before: not needed here."""
        embeds = embed(self._writer.params, self._writer.embedding, jnp.asarray(prompts))
        limit = self._limit * self._words.levels
        return generate.start(self._writer, embeds, lengths, keys, sampling, limit)

    def extend(self, progress, sampling: Sampling, passes: int, limits: jax.Array):
        """limits: frames of each item."""
        limits = limits * self._words.levels
        return generate.extend(self._writer, progress, sampling, passes, self._end, limits)

    def passes(self, frames: int) -> int:
        """Of the decoder, that may bring so many frames."""
        return max(frames * self._words.levels // len(self._writer.heads), 1)

    def read(self, progress: Any, row: int) -> np.ndarray:
        """What is written of an item so far."""
        return np.asarray(progress.ids[row, : int(progress.count[row])])


class Frames:
    """A position a frame, every level with a head."""

    def __init__(self, writer: generate.Writer, vocabulary: Vocabulary, limit: int):
        """limit: frames at most."""
        self._writer, self._limit = writer, limit
        end = vocabulary.mark("<end>")
        self._levels = frames.Levels(vocabulary.size, vocabulary.delays, end)

    def begin(self, prompts: np.ndarray, lengths, before: np.ndarray, keys, sampling: Sampling):
        """prompts int32 [B, S, Q], right-padded, of `lengths`; before int32 [B, D, Q]."""
        embeds = embed(self._writer.params, self._writer.embedding, jnp.asarray(prompts))
        before = jnp.asarray(before)
        return frames.start(self._writer, self._levels, embeds, lengths, before, keys, self._limit)

    def extend(self, progress, sampling: Sampling, passes: int, limits: jax.Array):
        """limits: frames of each item."""
        return frames.extend(self._writer, self._levels, progress, sampling, passes, limits)

    def passes(self, frames: int) -> int:
        """Of the decoder, that bring so many frames."""
        return frames

    def read(self, progress: Any, row: int) -> np.ndarray:
        """What is written of an item so far, whole frames."""
        late = self._levels.longest
        count = int(frames.complete(progress, self._levels)[row])
        ids = np.asarray(progress.frames[row, late : late + count]).reshape(-1)
        whole = progress.ended[row] and count == progress.length[row]
        return np.append(ids, np.int32(self._levels.end)) if whole else ids


def last_frames(codes: np.ndarray | None, vocabulary: Vocabulary) -> np.ndarray:
    """What `before` is for a prompt that ends in codes int32 [T * Q], or in none -> [D, Q]."""
    late = vocabulary.delays[-1]
    found = np.full((late, vocabulary.levels), NOTHING, np.int32)
    if codes is not None and late:
        kept = codes.reshape(-1, vocabulary.levels)[-late:]
        found[late - len(kept) :] = kept
    return found
