"""What a speech LM reads: codes, marks and text as one row of ids (docs/speech.md).

| task         | sequence; what stands in brackets may be absent                               |
|--------------|-------------------------------------------------------------------------------|
| continuation | `<audio> codes [<end>]`                                                       |
| tts          | `<text> text [<voice> codes] <audio> codes <end>`                             |
| chat         | turns of `<user>` or `<assistant>`, `[<text> text] [<audio> codes]`, `<end>`  |

Ids: the codes of all levels (`<CODEC_i>`, frame by frame), then the marks, then the text tokens.
Codes and marks have rows of their own, text those of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MARKS = ("<text>", "<voice>", "<audio>", "<end>", "<user>", "<assistant>")
TASKS = ("continuation", "tts", "chat")
ROLES = ("user", "assistant")


class Vocabulary(NamedTuple):
    """The ids there are."""

    size: int  # V, codes of a level
    levels: int  # Q, codes a frame
    text: int  # text tokens

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

    ids: np.ndarray  # int32 [n]
    predicted: np.ndarray  # bool [n], which of them the model learns to write


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
        return self._add([self.vocabulary.mark(name)], predicted)

    def text(self, ids: Sequence[int], predicted: bool = False) -> Writing:
        return self._add(np.asarray(ids, np.int32) + self.vocabulary.rows, predicted)

    def codes(self, codes: np.ndarray, predicted: bool = False) -> Writing:
        return self._add(codes, predicted)

    def _add(self, ids, predicted: bool) -> Writing:
        self._ids.append(np.asarray(ids, np.int32))
        self._predicted.append(np.full(len(ids), predicted))
        return self

    def done(self) -> Document:
        return Document(np.concatenate(self._ids), np.concatenate(self._predicted))


def continuation(vocabulary: Vocabulary, codes: np.ndarray, ends: bool) -> Document:
    """`ends`: the recording ends where its codes do."""
    writing = Writing(vocabulary).mark("<audio>").codes(codes, predicted=True)
    return (writing.mark("<end>", predicted=True) if ends else writing).done()


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
    writing = tts_prompt(vocabulary, text, voice).codes(codes, predicted=True)
    return writing.mark("<end>", predicted=True).done()


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
