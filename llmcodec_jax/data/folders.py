"""Audio folders: LibriSpeech's own layout, and any tree with texts beside the audio."""

from __future__ import annotations

import collections
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from llmcodec_jax import audio
from llmcodec_jax.audio import AudioError
from llmcodec_jax.data.records import Record, Word
from llmcodec_jax.data.tree import Tree
from llmcodec_jax.data.words import ALIGNMENT, read_alignment, read_words
from llmcodec_jax.types import DOMAINS

logger = logging.getLogger(__name__)

MANIFEST = "manifest.tsv"
_TRANSCRIPT = ".trans.txt"
_COLUMNS = {"path", "text", "speaker", "domain"}


class LibriSpeechSource:
    """`SPEAKER/CHAPTER/ID.flac` with `SPEAKER-CHAPTER.trans.txt` (`ID TEXT` a line) beside it.

    A record's name is its ID. Word times (`words`) come from `SPEAKER-CHAPTER.alignment.txt` or
    `ID.words.tsv` where a chapter has them.
    """

    def __init__(self, folder: str | Path):
        """Raises AudioError where `folder` holds no transcript in this layout."""
        self.tree = Tree(folder)
        self.label = self.tree.label
        self._items: list[tuple[str, str, str]] = []  # (ID, path below the folder, text)
        found, left_out = self.tree.find((_TRANSCRIPT, *audio.EXTENSIONS))
        if left_out:
            logger.warning("%s: left out %s", folder, ", ".join(left_out))
        chapters = collections.defaultdict(list)
        for name in found:
            chapters[os.path.dirname(name)].append(name)
        missing = 0
        for transcript in (name for name in found if name.endswith(_TRANSCRIPT)):
            missing += self._add_chapter(transcript, chapters[os.path.dirname(transcript)])
        if missing:
            logger.warning("%s: %d transcribed clips have no audio file", folder, missing)
        if not self._items:
            raise AudioError(
                f"{folder}: no SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt with audio below it; "
                "use folder:DIR for other layouts"
            )

    def _add_chapter(self, transcript: str, paths: Sequence[str]) -> int:
        """Indexes one chapter's files; returns how many of its transcripts have no audio."""
        sounds = {Path(p).stem: p for p in paths if Path(p).suffix.lower() in audio.EXTENSIONS}
        missing = 0
        for number, line in enumerate(self.tree.text(transcript).splitlines(), 1):
            if not line.strip():
                continue
            name, _, text = line.strip().partition(" ")
            if name in sounds:
                self._items.append((name, sounds.pop(name), text.strip()))
            else:
                missing += 1
                logger.debug("%s:%d: no audio file for %s", transcript, number, name)
        self._items += [(name, path, "") for name, path in sorted(sounds.items())]
        return missing

    def __len__(self) -> int:
        return len(self._items)

    def name(self, index: int) -> str:
        return self._items[index][0]

    def group(self, index: int) -> str:
        return self._items[index][0].partition("-")[0]

    def record(self, index: int) -> Record:
        name, path, text = self._items[index]
        words = _words_beside(self.tree, path)
        chapter = os.path.join(os.path.dirname(path), name.rpartition("-")[0] + ALIGNMENT)
        if not words and self.tree.has(chapter):
            words = read_alignment(self.tree.text(chapter), name, self.tree.label_of(chapter))
        sound, uri = self.tree.sound(path), self.tree.uri(path)
        return Record(name, sound, text or None, words, None, self.group(index), uri=uri)


class FolderSource:
    """Any tree of audio files, or the files a TSV manifest names.

    Without a manifest the text of `a/b.wav` is in `a/b.txt`. With `manifest.tsv` in the folder
    (or `folder:FILE.tsv`) its header names the columns: `path` (relative to the manifest) and
    any of `text`, `speaker`, `domain`. `a/b.words.tsv` gives word times in either case. A
    record's name is its path below the folder, without the suffix.
    """

    def __init__(self, path: str | Path):
        """Raises AudioError for a missing or empty folder and for a bad manifest."""
        given = str(path)
        named = given.lower().endswith(".tsv")
        folder, manifest = os.path.split(given) if named else (given, MANIFEST)
        self.tree = Tree(folder or ".")
        self.label = self.tree.label
        self._manifest = self.tree.has(manifest)
        if self._manifest:
            label = self.tree.label_of(manifest)
            self._rows = _read_manifest(self.tree.text(manifest), label)
        elif named:
            raise AudioError(f"{given}: no such manifest")
        else:
            found, left_out = self.tree.find(audio.EXTENSIONS)
            audio.check_found(given, found, left_out)
            self._rows = [{"path": name} for name in found]
        self._names = _unique_names([row["path"] for row in self._rows])

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        return self._names[index]

    def group(self, index: int) -> str:
        return self._rows[index].get("speaker") or self._names[index]

    def record(self, index: int) -> Record:
        row, tree = self._rows[index], self.tree
        path, text = row["path"], row.get("text")
        sound = tree.sound(path)
        beside = os.path.splitext(path)[0] + ".txt"
        if not self._manifest and tree.has(beside):
            text = tree.text(beside).strip()
        return Record(
            self._names[index],
            sound,
            text or None,
            _words_beside(tree, path),
            row.get("domain") or None,
            row.get("speaker") or None,
            uri=tree.uri(path),
        )


def _words_beside(tree: Tree, path: str) -> tuple[Word, ...]:
    words = os.path.splitext(path)[0] + ".words.tsv"
    return read_words(tree.text(words), tree.label_of(words)) if tree.has(words) else ()


def _unique_names(paths: list[str]) -> list[str]:
    """Paths without suffix, except where `a.wav` and `a.flac` would become one name."""
    stems = [str(Path(path).with_suffix("")) for path in paths]
    seen: dict[str, int] = {}
    for stem in stems:
        seen[stem] = seen.get(stem, 0) + 1
    return [path if seen[stem] > 1 else stem for path, stem in zip(paths, stems, strict=True)]


def _read_manifest(text: str, path: str) -> list[dict[str, str]]:
    """TSV with a header -> one dict a row. Raises AudioError naming file and line."""
    first, *lines = text.split("\n")
    header = [column.strip().lower() for column in first.split("\t")]
    if "path" not in header or len(set(header)) < len(header):
        raise AudioError(
            f"{path}:1: the first line must name the columns, tab-separated, one of them `path` "
            f"(others: {', '.join(sorted(_COLUMNS - {'path'}))})"
        )
    if unknown := set(header) - _COLUMNS:
        logger.warning("%s: columns not used: %s", path, ", ".join(sorted(unknown)))
    rows: list[dict[str, str]] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 2):
        values = line.split("\t")
        if not line.strip():
            continue
        if len(values) != len(header):
            raise AudioError(
                f"{path}:{number}: {len(values)} columns, the header has {len(header)}"
            )
        row = {key: value.strip() for key, value in zip(header, values, strict=True)}
        if not row["path"] or "\0" in row["path"]:
            raise AudioError(f"{path}:{number}: the path is empty or no path")
        if row["path"] in seen:
            raise AudioError(
                f"{path}:{number}: {row['path']} is already on line {seen[row['path']]}"
            )
        if row.get("domain") and row["domain"] not in DOMAINS:
            raise AudioError(
                f"{path}:{number}: domain {row['domain']!r} is not one of {', '.join(DOMAINS)}"
            )
        seen[row["path"]] = number
        rows.append({key: row[key] for key in header if key in _COLUMNS})
    if not rows:
        raise AudioError(f"{path}: names no audio file")
    return rows
