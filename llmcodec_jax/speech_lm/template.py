"""What a speech LM reads: codes, marks and text as one row of ids (docs/speech.md).

| task         | sequence; what stands in brackets may be absent                               |
|--------------|-------------------------------------------------------------------------------|
| continuation | `<audio> codes [<end>]`                                                       |
| tts          | `<text> text [<voice> codes] <audio> codes <end>`                             |
| chat         | turns of `<user>` or `<assistant>`, `[<text> text] [<audio> codes]`, `<end>`  |

Ids: the codes of all levels (`<CODEC_i>`, frame by frame), then the marks, then the text tokens.
Codes and marks have rows of their own, text those of the language model.

How a residual codec's levels stand in a sequence (`lm.reads`), here four frames of two:

| flat  | a0 b0 a1 b1 a2 b2 a3 b3 <end>  | a position a code                                      |
| sum   | a0 a1 a2 a3 <end>              | a position a frame: the sum of its rows in, a head a   |
|       | b0 b1 b2 b3 <end>              | level out, which do not know of each other             |
| delay | a0 a1 a2 a3 <end>  .           | level q stands q frames later and knows all before it  |
|       | .  b0 b1 b2  b3  <end>         | (MusicGen, arXiv 2306.05284)                           |

Where levels stand at one position, ids are [n, Q]; marks and text stand in the first level, and
NOTHING where a level has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MARKS = ("<text>", "<voice>", "<audio>", "<end>", "<user>", "<assistant>")
TASKS = ("continuation", "tts", "chat")
ROLES = ("user", "assistant")
READS = ("flat", "sum", "delay")
NOTHING = -1
"""The id of a level that has nothing at a position; it adds nothing to what is read."""


class Vocabulary(NamedTuple):
    """The ids there are."""

    size: int  # V, codes of a level
    levels: int  # Q, codes a frame
    text: int  # text tokens
    reads: str = "flat"  # of READS

    @property
    def stacked(self) -> bool:
        """Whether the levels of a frame stand at one position: ids are then [n, Q]."""
        return self.reads != "flat"

    @property
    def delays(self) -> tuple[int, ...]:
        """Positions by which each level is late, where they are stacked."""
        return tuple(q if self.reads == "delay" else 0 for q in range(self.levels))

    @property
    def places(self) -> int:
        """Positions of a frame."""
        return 1 if self.stacked else self.levels

    @property
    def codes(self) -> int:
        """Ids of codes: [0, codes)."""
        return self.size * self.levels

    @property
    def rows(self) -> int:
        """Codes and marks, which have rows of their own."""
        return self.codes + len(MARKS)

    def mark(self, name: str) -> int:
        """The id of a mark."""
        return self.codes + MARKS.index(name)

    def allowed(self) -> np.ndarray:
        """bool [Q, rows]: what may stand at a place of written speech, by its level.

        A frame is written whole: it can end only before its first level.
        """
        found = np.zeros((self.levels, self.rows), bool)
        for level in range(self.levels):
            found[level, level * self.size : (level + 1) * self.size] = True
        found[0, self.mark("<end>")] = True
        return found


class Document(NamedTuple):
    """One sequence."""

    ids: np.ndarray  # int32 [n], or [n, Q] of stacked levels
    predicted: np.ndarray  # bool like `ids`, which of them the model learns to write


class Turn(NamedTuple):
    """What one side of a dialogue says: text, speech, or speech after its text."""

    role: str  # of ROLES
    text: Sequence[int] = ()
    codes: np.ndarray | None = None  # int32 [T * Q], indices of `<CODEC_i>`


class Writing:
    """A sequence under construction."""

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        self._ids: list[np.ndarray] = []
        self._predicted: list[np.ndarray] = []

    def mark(self, name: str, predicted: bool = False) -> Writing:
        return self._add(np.array([self.vocabulary.mark(name)]), predicted)

    def text(self, ids: Sequence[int], predicted: bool = False) -> Writing:
        return self._add(np.asarray(ids, np.int32) + self.vocabulary.rows, predicted)

    def codes(
        self, codes: np.ndarray, predicted: bool = False, *, ends: bool = False, cut: bool = False
    ) -> Writing:
        """codes int32 [T * Q]. `ends`: <end> follows in every level, of which the first one's is
        learned. `cut`: stop where the first level does, though later ones are delayed."""
        if not self.vocabulary.stacked:
            self._add(codes, predicted)
            return self.mark("<end>", predicted) if ends else self
        frames = np.asarray(codes, np.int32).reshape(-1, self.vocabulary.levels)
        learned = np.full(frames.shape, predicted)
        if ends:
            last = np.full((1, self.vocabulary.levels), self.vocabulary.mark("<end>"), np.int32)
            frames = np.concatenate([frames, last])
            learned = np.concatenate([learned, (np.arange(frames.shape[1]) == 0)[None] & predicted])
        delays = self.vocabulary.delays
        size = len(frames) + (0 if cut else delays[-1])
        self._ids.append(delayed(frames, delays, NOTHING)[:size])
        self._predicted.append(delayed(learned, delays, False)[:size])
        return self

    def _add(self, ids, predicted: bool) -> Writing:
        ids = np.asarray(ids, np.int32)
        learned = np.full(len(ids), predicted)
        if self.vocabulary.stacked:
            others = ((0, 0), (0, self.vocabulary.levels - 1))
            ids = np.pad(ids[:, None], others, constant_values=NOTHING)
            learned = np.pad(learned[:, None], others)
        self._ids.append(ids)
        self._predicted.append(learned)
        return self

    def done(self) -> Document:
        return Document(np.concatenate(self._ids), np.concatenate(self._predicted))


def delayed(frames: np.ndarray, delays: Sequence[int], empty) -> np.ndarray:
    """[T, Q] -> [T + the longest delay, Q], each level as late as it is; `empty` elsewhere."""
    found = np.full((len(frames) + max(delays), len(delays)), empty, frames.dtype)
    for level, delay in enumerate(delays):
        found[delay : delay + len(frames), level] = frames[:, level]
    return found


def continuation(vocabulary: Vocabulary, codes: np.ndarray, ends: bool) -> Document:
    """`ends`: the recording ends where its codes do; else it goes on, and so may an LM."""
    writing = Writing(vocabulary).mark("<audio>")
    return writing.codes(codes, predicted=True, ends=ends, cut=not ends).done()


def tts_prompt(
    vocabulary: Vocabulary, text: Sequence[int], voice: np.ndarray | None = None
) -> Writing:
    """All that a speech LM is given before it speaks."""
    writing = Writing(vocabulary).mark("<text>").text(text)
    if voice is not None:
        writing.mark("<voice>").codes(voice)
    return writing.mark("<audio>")


def tts(
    vocabulary: Vocabulary, text: Sequence[int], codes: np.ndarray, voice: np.ndarray | None = None
) -> Document:
    """Text, and a few seconds of the voice to say it in."""
    return tts_prompt(vocabulary, text, voice).codes(codes, predicted=True, ends=True).done()


def chat(vocabulary: Vocabulary, turns: Sequence[Turn]) -> Document:
    """A dialogue; what the assistant says is learned, text first, as in SpeechGPT (2305.11000)."""
    writing = Writing(vocabulary)
    for turn in turns:
        learned = turn.role == "assistant"
        writing.mark(f"<{turn.role}>")
        if len(turn.text):
            writing.mark("<text>", learned).text(turn.text, learned)
        if turn.codes is not None:
            writing.mark("<audio>", learned).codes(turn.codes, learned)
        writing.mark("<end>", learned)
    return writing.done()
