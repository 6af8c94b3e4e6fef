"""Dialogues as JSON lines: who says what, in text, in speech, or both.

    {"id": "d1", "turns": [{"role": "user", "audio": "d1/question.wav"},
                           {"role": "assistant", "text": "Yes.", "audio": "d1/answer.wav"}]}

Audio is named relative to the file. "dialogues:FILE.jsonl" is a source of the chat task.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llmcodec_jax.data.records import EncodedSound, Record
from llmcodec_jax.errors import UsageError
from llmcodec_jax.ops import files
from llmcodec_jax.speech_lm.corpus import Clip, Said, read_coded
from llmcodec_jax.speech_lm.template import ROLES

logger = logging.getLogger(__name__)


class Sounds:
    """Every turn's recording as a source's record, named DIALOGUE/TURN."""

    def __init__(self, path: Path, rows: list[dict]):
        self.label = path.stem
        self._items = [
            (f"{row['id']}/{number}", path.parent / turn["audio"])
            for row in rows
            for number, turn in enumerate(row["turns"])
            if turn.get("audio")
        ]

    def __len__(self) -> int:
        return len(self._items)

    def name(self, index: int) -> str:
        return self._items[index][0]

    def group(self, index: int) -> str:
        return self._items[index][0].rpartition("/")[0]

    def record(self, index: int) -> Record:
        name, path = self._items[index]
        return Record(name, EncodedSound(path))


def read(path: Path, codec, levels: int, cache: Path) -> Iterator[Clip]:
    """A file's dialogues, each as one clip with its turns.

    Dialogues with a recording that cannot be used are left out, counted and named in the log.
    Raises UsageError naming the line for what is no dialogue.
    """
    rows = check(path, files.read_json_lines(path))
    codes = {clip.name: clip.codes for clip in read_coded(Sounds(path, rows), codec, levels, cache)}
    left_out = []
    for row in rows:
        turns = []
        for number, turn in enumerate(row["turns"]):
            heard = codes.get(f"{row['id']}/{number}") if turn.get("audio") else None
            if turn.get("audio") and heard is None:
                left_out.append(row["id"])
                break
            turns.append(Said(turn["role"], turn.get("text") or "", heard))
        else:
            every = [turn.codes for turn in turns if turn.codes is not None]
            spoken = np.concatenate([*every, np.zeros(0, np.int32)]).astype(np.int32)
            yield Clip(row["id"], "", " ".join(t.text for t in turns), spoken, tuple(turns))
    if left_out:
        logger.warning("%s: %d dialogues left out, first %s", path, len(left_out), left_out[0])


def check(path: Path, rows: list[dict]) -> list[dict]:
    """The rows, each with an id of its own. Raises UsageError naming the line."""
    if not rows:
        raise UsageError(f"{path}: no line of JSON there")
    checked = []
    for number, row in enumerate(rows, 1):
        turns = row.get("turns")
        if not isinstance(turns, list) or not turns:
            raise UsageError(f"{path}:{number}: a dialogue has a list of turns")
        for turn in turns:
            if not isinstance(turn, dict) or turn.get("role") not in ROLES:
                raise UsageError(f"{path}:{number}: a turn's role is one of {', '.join(ROLES)}")
            if not turn.get("text") and not turn.get("audio"):
                raise UsageError(f"{path}:{number}: a turn has text, audio, or both")
        checked.append(row | {"id": str(row.get("id", f"{number:06d}"))})
    if len({row["id"] for row in checked}) < len(checked):
        raise UsageError(f"{path}: two dialogues have the same id")
    return checked
