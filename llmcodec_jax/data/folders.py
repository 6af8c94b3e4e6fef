"""Audio folders: LibriSpeech's own layout, and any tree with texts beside the audio."""

from __future__ import annotations

import collections
import logging
from collections.abc import Sequence
from pathlib import Path

from llmcodec_jax import audio
from llmcodec_jax.audio import AudioError
from llmcodec_jax.data.records import EncodedSound, Record, Word, read_text
from llmcodec_jax.data.words import ALIGNMENT, read_alignment, read_words
from llmcodec_jax.ops import files
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
        self.folder = Path(folder)
        self.label = self.folder.resolve().name
        self._items: list[tuple[str, str, str]] = []  # (ID, path below the folder, text)
        if not self.folder.is_dir():
            raise AudioError(f"{folder}: no such folder")
        found, left_out = files.find(self.folder, (_TRANSCRIPT, *audio.EXTENSIONS))
        if left_out:
            logger.warning("%s: left out %s", folder, ", ".join(left_out))
        chapters = collections.defaultdict(list)
        for path in found:
            chapters[path.parent].append(path)
        missing = 0
        for transcript in (path for path in found if path.name.endswith(_TRANSCRIPT)):
            missing += self._add_chapter(transcript, chapters[transcript.parent])
        if missing:
            logger.warning("%s: %d transcribed clips have no audio file", folder, missing)
        if not self._items:
            raise AudioError(
                f"{folder}: no SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt with audio below it; "
                "use folder:DIR for other layouts"
            )

    def _add_chapter(self, transcript: Path, paths: Sequence[Path]) -> int:
        """Indexes one chapter's files; returns how many of its transcripts have no audio."""
        sounds = {
            path.stem: str(path.relative_to(self.folder))
            for path in paths
            if path.suffix.lower() in audio.EXTENSIONS
        }
        missing = 0
        for number, line in enumerate(read_text(transcript).splitlines(), 1):
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
        path = self.folder / path
        chapter = path.with_name(name.rpartition("-")[0] + ALIGNMENT)
        words = _words_beside(path)
        if not words and chapter.is_file():
            words = read_alignment(chapter, name)
        return Record(name, EncodedSound(path), text or None, words, None, self.group(index))


class FolderSource:
    """Any tree of audio files, or the files a TSV manifest names.

    Without a manifest the text of `a/b.wav` is in `a/b.txt`. With `manifest.tsv` in the folder
    (or `folder:FILE.tsv`) its header names the columns: `path` (relative to the manifest) and
    any of `text`, `speaker`, `domain`. `a/b.words.tsv` gives word times in either case. A
    record's name is its path below the folder, without the suffix.
    """

    def __init__(self, path: str | Path):
        """Raises AudioError for a missing or empty folder and for a bad manifest."""
        path = Path(path)
        manifest = path if path.suffix.lower() == ".tsv" else path / MANIFEST
        self.folder = manifest.parent
        self.label = self.folder.resolve().name
        if manifest.is_file():
            self._rows = _read_manifest(manifest)
            self._manifest = True
        elif path.suffix.lower() == ".tsv":
            raise AudioError(f"{manifest}: no such manifest")
        else:
            files = [str(file.relative_to(path)) for file in audio.find(path)]
            self._rows = [{"path": file} for file in files]
            self._manifest = False
        self._names = _unique_names([row["path"] for row in self._rows])

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        return self._names[index]

    def group(self, index: int) -> str:
        return self._rows[index].get("speaker") or self._names[index]

    def record(self, index: int) -> Record:
        row = self._rows[index]
        path = self.folder / row["path"]
        sound = EncodedSound(path)
        text = row.get("text")
        if not self._manifest and path.with_suffix(".txt").is_file():
            text = read_text(path.with_suffix(".txt")).strip()
        return Record(
            self._names[index],
            sound,
            text or None,
            _words_beside(path),
            row.get("domain") or None,
            row.get("speaker") or None,
        )


def _words_beside(path: Path) -> tuple[Word, ...]:
    words = path.with_suffix(".words.tsv")
    return read_words(words) if words.is_file() else ()


def _unique_names(paths: list[str]) -> list[str]:
    """Paths without suffix, except where `a.wav` and `a.flac` would become one name."""
    stems = [str(Path(path).with_suffix("")) for path in paths]
    seen: dict[str, int] = {}
    for stem in stems:
        seen[stem] = seen.get(stem, 0) + 1
    return [path if seen[stem] > 1 else stem for path, stem in zip(paths, stems, strict=True)]


def _read_manifest(path: Path) -> list[dict[str, str]]:
    """TSV with a header -> one dict a row. Raises AudioError naming file and line."""
    first, *lines = read_text(path).split("\n")
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
