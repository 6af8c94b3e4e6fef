"""When each word is said: alignment files, read for one recording at a time.

Two forms: `NAME.words.tsv` beside the audio (start, end, word, tab-separated, in seconds), and the
files of the public LibriSpeech alignments, `SPEAKER-CHAPTER.alignment.txt`, whose lines are
`ID ",GO,,DO" "0.49,0.89,1.27,1.38"`: words, and the time each ends, an empty word being silence.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path

from llmcodec_jax.audio import AudioError
from llmcodec_jax.data.records import Record, Source, Word, read_text

ALIGNMENT = ".alignment.txt"
_LINE = re.compile(r'^(\S+) "([^"]*)" "([^"]*)"$')


def read_words(text: str, path: str | Path) -> tuple[Word, ...]:
    """Text of the word alignment file `path` -> words.

    Lines are `start<TAB>end<TAB>word`, in seconds; # comments.
    Raises AudioError naming file and line.
    """
    words: list[Word] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            start, end, word = line.split("\t")
            words.append((float(start), float(end), word.strip()))
        except ValueError as error:
            raise AudioError(f"{path}:{number}: expected start<TAB>end<TAB>word") from error
        if not 0 <= words[-1][0] <= words[-1][1]:
            raise AudioError(f"{path}:{number}: a word must end after it starts, from 0 s on")
    return tuple(sorted(words))


def read_alignment(text: str, utterance: str, path: str | Path) -> tuple[Word, ...]:
    """One utterance's words from the text of a chapter's file `path`; () where it has none.

    Raises AudioError naming file and line.
    """
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith(f"{utterance} "):
            continue
        match = _LINE.match(line.strip())
        words, ends = (match[2].split(","), match[3].split(",")) if match else ([], [""])
        try:
            times = [0.0, *map(float, ends)]
            spans = zip(itertools.pairwise(times), words, strict=True)
            return tuple((*span, word) for span, word in spans if word)
        except ValueError as error:
            expected = 'ID ",WORD,.." "0.1,0.5,.."'
            raise AudioError(f"{path}:{number}: expected {expected}") from error
    return ()


class Aligned:
    """A source whose recordings get their word times from a folder of alignment files."""

    def __init__(self, source: Source, folder: str | Path):
        """Raises AudioError where `folder` holds no alignment file."""
        self.label = source.label
        self._source = source
        self.shards = getattr(source, "shards", None)
        files = Path(folder).expanduser().rglob(f"*{ALIGNMENT}")
        self._chapters = {file.name.removesuffix(ALIGNMENT): file for file in sorted(files)}
        if not self._chapters:
            raise AudioError(f"{folder}: no SPEAKER-CHAPTER{ALIGNMENT} below this folder")

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        return self._source.name(index)

    def group(self, index: int) -> str:
        return self._source.group(index)

    def record(self, index: int) -> Record:
        record = self._source.record(index)
        utterance = record.utterance or record.name
        chapter = self._chapters.get(utterance.rpartition("-")[0])
        if record.words or chapter is None:
            return record
        return dataclasses.replace(
            record, words=read_alignment(read_text(chapter), utterance, chapter)
        )
