"""The token table: clips' codes as Parquet rows, one file or the shards of a folder or bucket.

| column        | type        | meaning                                                        |
|---------------|-------------|----------------------------------------------------------------|
| id            | string      | the clip's name, unique in the table                           |
| codes         | list<int32> | numbers i of `<CODEC_i>`, frame by frame: level q adds q * V   |
| num_frames    | int64       | T; there are T * levels codes                                  |
| num_samples   | int64       | clip length at the codec's rate                                |
| sample_rate   | int32       | the codec's rate in Hz                                         |
| levels        | int32       | codes a frame                                                  |
| codebook_size | int32       | V, codes of a level                                            |
| codec         | string      | digest of the codec                                            |
| hop           | int32       | samples a frame; tables may lack this and what follows      |
| source        | string      | where the audio lies: a path or URI, `ARCHIVE#MEMBER`          |
| duration      | float64     | seconds                                                        |
| transcript    | string      | what is said; null where it is not known                       |
| speaker       | string      | null where it is not known                                     |

`export_tokens` and `encode --engine` write it; `tokens:PATH` reads it.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from llmcodec_jax.audio import AudioError
from llmcodec_jax.data import stores
from llmcodec_jax.data.records import EncodedSound, Record

SUFFIX = ".parquet"
ROWS = 256  # a row group: what is decoded to read one row
KIND = ("sample_rate", "levels", "codebook_size", "codec")
"""In which all rows of a table agree: numbers of two codecs must not stand in one column."""
_FIRST = {
    "id": pa.string(),
    "codes": pa.list_(pa.int32()),
    "num_frames": pa.int64(),
    "num_samples": pa.int64(),
    "sample_rate": pa.int32(),
    "levels": pa.int32(),
    "codebook_size": pa.int32(),
    "codec": pa.string(),
    "hop": pa.int32(),
}
_ORIGIN = {
    "source": pa.string(),
    "duration": pa.float64(),
    "transcript": pa.string(),
    "speaker": pa.string(),
}
_KEPT_GROUPS = 64  # row groups in memory: half a megabyte each, for clips of 10 s at 50 Hz
_SMALL = ("id", "num_frames", "num_samples", "duration", "speaker", "transcript", "source")


def schema(origin: bool = True, text: bool = False) -> pa.Schema:
    """Columns of a table; `origin` those on where clips come from, `text` codes as `<CODEC_i>`."""
    extra = {"text": pa.string()} if text else {}
    return pa.schema(_FIRST | (_ORIGIN if origin else {}) | extra)


def write(target: Any, rows: Iterable[dict], kind: pa.Schema) -> None:
    """Rows -> a Parquet file, or an open binary file, a row group at a time."""
    remaining = iter(rows)
    with parquet.ParquetWriter(target, kind, compression="zstd") as writer:
        while group := list(itertools.islice(remaining, ROWS)):
            writer.write_table(pa.Table.from_pylist(group, kind))


def is_table(file: str) -> bool:
    """Whether a Parquet file has a table's columns. Raises AudioError where it cannot be read."""
    try:
        names = _open(file).schema_arrow.names
    except (OSError, pa.ArrowException) as error:
        raise AudioError(f"{file}: cannot be read as Parquet ({error})") from error
    return all(name in names or name == "hop" for name in _FIRST)


class TokenTable:
    """Random access to a table's rows; picklable.

    Its small columns are held in memory, codes are read when they are asked for. As a source
    (`open_source("tokens:PATH")`) it is the recordings that were coded.
    """

    def __init__(self, path: str | Path):
        """`path`: a .parquet file, a folder of them, a glob, or such a URI.

        Raises AudioError where there is no table, a file is damaged, or codecs are mixed.
        """
        self.path = str(path)
        found = stores.expand(self.path, SUFFIX)
        if not found:
            raise AudioError(f"{self.path}: no {SUFFIX} token table here")
        self.label = Path(self.path.rstrip("/")).stem
        self._files, self._starts, columns = [], [0], []
        kinds: dict[tuple, str] = {}
        for file in found:
            read, kind = _read_small(file)
            if not read.num_rows:
                continue
            kinds.setdefault(kind, file)
            columns.append(read)
            self._files.append(file)
            self._starts.append(self._starts[-1] + read.num_rows)
        if len(kinds) != 1:
            named = "; ".join(f"{file}: {kind}" for kind, file in list(kinds.items())[:2])
            raise AudioError(
                f"{self.path}: rows of {len(kinds)} codecs {KIND}, not of one ({named})"
            )
        ((*about, self.hop),) = kinds
        self.sample_rate, self.levels, self.codebook_size, self.codec = about
        self._columns = pa.concat_tables(columns, promote_options="default").combine_chunks()
        self._names: list[str] = self._columns["id"].to_pylist()

    def __len__(self) -> int:
        return len(self._names)

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        if self.hop:
            return self.sample_rate / self.hop
        frames, samples = (
            sum(self._columns[name].to_pylist()) for name in ("num_frames", "num_samples")
        )
        return frames * self.sample_rate / samples

    @property
    def vocabulary(self) -> int:
        """Different numbers that `numbers` may hold: V * levels."""
        return self.codebook_size * self.levels

    def name(self, index: int) -> str:
        """The row's id."""
        return self._names[index]

    def group(self, index: int) -> str:
        """The speaker, or the id where none is known."""
        return self._value("speaker", index) or self._names[index]

    def transcript(self, index: int) -> str | None:
        """What is said, where it is known."""
        return self._value("transcript", index) or None

    def seconds(self, index: int) -> float:
        """Duration of the clip."""
        return self._value("num_samples", index) / self.sample_rate

    def source(self, index: int) -> str | None:
        """Where the audio lies."""
        return self._value("source", index)

    def frames(self, index: int) -> int:
        """T, without reading the codes."""
        return self._value("num_frames", index)

    def numbers(self, index: int) -> np.ndarray:
        """Numbers i of `<CODEC_i>`, int32 [T * levels]. Raises AudioError for a damaged row."""
        which = bisect.bisect_right(self._starts, index) - 1
        first, stop = self._starts[which : which + 2]
        try:
            row = _row(self._files[which], index - first, stop - first)
        except (OSError, pa.ArrowException) as error:
            raise AudioError(f"{self._files[which]}: row of {self.name(index)}: {error}") from error
        if len(row) != self.frames(index) * self.levels or row.min(initial=0) < 0:
            raise AudioError(f"{self._files[which]}: row of {self.name(index)} is damaged")
        return row

    def codes(self, index: int) -> np.ndarray:
        """Codes, int32 [T], or [T, levels] with more than one level."""
        numbers = self.numbers(index)
        if self.levels == 1:
            return numbers
        levels = np.arange(self.levels, dtype=np.int32) * self.codebook_size
        return numbers.reshape(-1, self.levels) - levels

    def record(self, index: int) -> Record:
        """The recording that the row was made of: `tokens:` as a source of audio.

        Raises AudioError where it is not known or cannot be opened.
        """
        uri = self.source(index)
        if not uri:
            raise AudioError(f"{self.path}: does not say where {self.name(index)} lies")
        speaker = self._value("speaker", index) or None
        sound = open_sound(uri)
        return Record(self.name(index), sound, self.transcript(index), speaker=speaker, uri=uri)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """(id, numbers) of every row, in order."""
        return ((self.name(index), self.numbers(index)) for index in range(len(self)))

    def _value(self, column: str, index: int) -> Any:
        if column not in self._columns.column_names:
            return None
        return self._columns[column][index].as_py()


def open_sound(uri: str) -> EncodedSound:
    """Audio at a path or URI, `TAR#MEMBER` or `PARQUET#ROW`. Raises AudioError."""
    from llmcodec_jax.data import parquet_audio, webdataset

    archive, _, inside = uri.rpartition("#")
    if archive.endswith(webdataset.SUFFIX):
        return webdataset.open_member(archive, inside)
    if archive.endswith(parquet_audio.SUFFIX) and inside.isdecimal():
        return parquet_audio.open_row(archive, int(inside))
    return EncodedSound(uri if stores.is_remote(uri) else Path(uri))


def _read_small(file: str) -> tuple[pa.Table, tuple]:
    """A file's columns without codes, and what all its rows agree in with the hop."""
    try:
        opened = _open(file)
        names = opened.schema_arrow.names
        missing = [name for name in _FIRST if name not in (*names, "hop")]
        if missing:
            raise AudioError(f"{file}: is no token table, it lacks {', '.join(missing)}")
        table = opened.read([name for name in _SMALL if name in names])
        kinds = opened.read([*KIND, *(["hop"] if "hop" in names else [])]).to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise AudioError(f"{file}: cannot be read as Parquet ({error})") from error
    hops = kinds.get("hop", [None] * table.num_rows)
    found = set(zip(*(kinds[name] for name in KIND), hops, strict=True))
    if len(found) > 1:
        raise AudioError(f"{file}: rows of {len(found)} codecs ({', '.join(KIND)} differ)")
    return table, next(iter(found), ())


def _open(file: str) -> parquet.ParquetFile:
    if stores.is_remote(file):
        return parquet.ParquetFile(pa.BufferReader(stores.read(file)))
    return parquet.ParquetFile(file, memory_map=True)


@functools.lru_cache(maxsize=256)
def _kept_open(file: str, _rows: int) -> parquet.ParquetFile:
    return _open(file)


@functools.lru_cache(maxsize=_KEPT_GROUPS)
def _group(file: str, number: int, rows: int) -> pa.ListArray:
    read = _kept_open(file, rows).read_row_group(number, columns=["codes"])
    return read["codes"].combine_chunks()


def _row(file: str, row: int, rows: int) -> np.ndarray:
    """Codes of a file's row, int32; `rows` that the file had when the table was opened."""
    about = _kept_open(file, rows).metadata
    for number in range(about.num_row_groups):
        size = about.row_group(number).num_rows
        if row < size:
            return np.asarray(_group(file, number, rows)[row].values, np.int32)
        row -= size
    raise AudioError(f"{file}: has no row {row}")
