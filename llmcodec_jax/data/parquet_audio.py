"""Parquet files with audio in a column, as `datasets` of the Hugging Face Hub are kept.

`parquet:PATTERN` reads a file, a folder of them or a glob, here, in a store, or on the Hub
(`parquet:hf://datasets/OWNER/NAME/data/train-*.parquet`). Audio is a column of
{bytes, path} or of bytes, text and speaker are columns of the usual names. A row is read with its
row group, which suits reading in order; for training at random write ArrayRecord shards
(`data/prepare.py`).
"""

from __future__ import annotations

import bisect
import functools
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from llmcodec_jax.audio import AudioError
from llmcodec_jax.data import block_cache, stores
from llmcodec_jax.data.records import SPEAKER_NAMES, TEXT_NAMES, EncodedSound, Record

SUFFIX = ".parquet"
_ID_NAMES = ("id", "segment_id", "utterance_id")
_KEPT_GROUPS = 4


class ParquetAudioSource:
    """All rows of the files that a pattern names, in order; picklable.

    A record's name is its id, else its audio's path, else `FILE/NUMBER`.
    """

    def __init__(self, pattern: str):
        """Raises AudioError where no file is found, or one is damaged or without audio."""
        self.paths = stores.expand(pattern, SUFFIX)
        if not self.paths:
            raise AudioError(f"{pattern}: no {SUFFIX} file matches")
        self.label = stores.folder_name(self.paths[0])
        self.shards: list[int] = []
        self._names: list[str] = []
        self._groups: list[str] = []
        for path in self.paths:
            try:
                names, groups = _read_names(path)
            except (OSError, pa.ArrowException) as error:
                raise AudioError(f"{path}: cannot be read as Parquet ({error})") from error
            self.shards.append(len(names))
            self._names += names
            self._groups += groups
        if len(set(self._names)) < len(self._names):
            stems = [PurePosixPath(path).stem for path in self.paths]
            numbered = zip(stems, self.shards, strict=True)
            self._names = [f"{stem}/{n}" for stem, count in numbered for n in range(count)]
        self._starts = [sum(self.shards[:n]) for n in range(len(self.shards))]

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def group(self, index: int) -> str:
        return self._groups[index] or self._names[index]

    def record(self, index: int) -> Record:
        which = bisect.bisect_right(self._starts, index) - 1
        path, name = self.paths[which], self.name(index)
        row_number = index - self._starts[which]
        uri = f"{path}#{row_number}"
        try:
            row = read_row(path, row_number)
        except (OSError, pa.ArrowException) as error:
            raise AudioError(f"{uri}: cannot be read ({error})") from error
        text = next((row[n] for n in TEXT_NAMES if row.get(n)), None)
        return Record(name, _sound(row, uri), text, speaker=self._groups[index] or None, uri=uri)


def open_row(path: str, row: int) -> EncodedSound:
    """The audio of a file's row. Raises AudioError."""
    try:
        return _sound(read_row(path, row), f"{path}#{row}")
    except (OSError, pa.ArrowException, IndexError) as error:
        raise AudioError(f"{path}#{row}: cannot be read ({error})") from error


def _sound(row: dict[str, Any], label: str) -> EncodedSound:
    value = row[_AUDIO]
    data = value.get("bytes") if isinstance(value, dict) else value
    if not data:
        raise AudioError(f"{label}: holds no audio bytes, only a path; embed the files")
    return EncodedSound(data, label)


_AUDIO = " audio"  # key of a row's audio, whatever the column's name


@functools.lru_cache(maxsize=64)
def _open(path: str) -> parquet.ParquetFile:
    if stores.is_remote(path):
        return parquet.ParquetFile(block_cache.open_ranged(path))
    return parquet.ParquetFile(path, memory_map=True)


def _columns(path: str) -> dict[str, str]:
    """Which columns are audio, text, speaker and id. Raises AudioError without audio."""
    schema = _open(path).schema_arrow
    fields = {field.name: field.type for field in schema}
    sounding = [
        name
        for name, kind in fields.items()
        if pa.types.is_binary(kind)
        or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)
    ]
    if not sounding:
        raise AudioError(f"{path}: no column of audio bytes; it has {', '.join(fields)}")
    found = {_AUDIO: "audio" if "audio" in sounding else sounding[0]}
    for key, names in (("text", TEXT_NAMES), ("speaker", SPEAKER_NAMES), ("id", _ID_NAMES)):
        present = [name for name in names if name in fields]
        found |= {key: present[0]} if present else {}
    return found


def _read_names(path: str) -> tuple[list[str], list[str]]:
    """(names, speakers or "") of a file's rows, without reading audio."""
    columns, opened = _columns(path), _open(path)
    count, sounding = opened.metadata.num_rows, columns[_AUDIO]
    wanted = [columns[key] for key in ("speaker", "id") if key in columns]
    named = opened.schema_arrow.field(sounding).type
    by_path = (
        "id" not in columns and pa.types.is_struct(named) and named.get_field_index("path") >= 0
    )
    table = opened.read([*wanted, *([f"{sounding}.path"] if by_path else [])]).to_pydict()
    speakers = [str(s) if s is not None else "" for s in table.get(columns.get("speaker", ""), [])]
    names = [str(n) for n in table.get(columns.get("id", ""), [])]
    if by_path:
        paths = [(value or {}).get("path") or "" for value in table[sounding]]
        names = [str(PurePosixPath(p).with_suffix("")) if p else "" for p in paths]
    if not names or not all(names):
        names = [f"{PurePosixPath(path).stem}/{number}" for number in range(count)]
    return names, speakers or [""] * count


@functools.lru_cache(maxsize=_KEPT_GROUPS)
def _group(path: str, number: int) -> pa.Table:
    columns = _columns(path)
    wanted = [columns[key] for key in (_AUDIO, "text") if key in columns]
    return _open(path).read_row_group(number, columns=wanted)


def read_row(path: str, row: int) -> dict[str, Any]:
    """Audio and text of a file's row."""
    about, sounding = _open(path).metadata, _columns(path)[_AUDIO]
    for number in range(about.num_row_groups):
        size = about.row_group(number).num_rows
        if row < size:
            found = _group(path, number).slice(row, 1).to_pylist()[0]
            return found | {_AUDIO: found[sounding]}
        row -= size
    raise IndexError(f"no row {row}")
