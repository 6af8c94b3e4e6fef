"""Our ArrayRecord layout: compressed audio with its words in a few large, randomly read files.

A record is `magic (4 bytes) | header length (uint32, little-endian) | header (UTF-8 JSON) | audio
file`. The header holds `name` and, where known, `text`, `words` ([[start, end, word], ..]),
`domain`, `speaker`; the audio is a whole FLAC or Ogg Opus file. Each shard has a sidecar
`SHARD.names` (one name and speaker a line, tab-separated, in the shard's order), so that a split
by name opens no record. `python -m llmcodec_jax.data.prepare` writes them.
"""

from __future__ import annotations

import contextlib
import io
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
from array_record.python import array_record_module

from llmcodec_jax.audio import AudioError
from llmcodec_jax.data import stores
from llmcodec_jax.data.records import EncodedSound, Record
from llmcodec_jax.data.shards import open_shards
from llmcodec_jax.ops import files
from llmcodec_jax.types import DOMAINS

MAGIC = b"LCA1"
SUFFIX = ".array_record"
_NAMES = ".names"
CODECS = {"flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS")}


def pack(record: Record, wav: np.ndarray, rate: int, codec: str) -> bytes:
    """Record and its mono float [N] audio -> bytes; `codec` is flac (lossless) or opus."""
    header = {"name": record.name, "text": record.text, "words": record.words}
    header |= {"domain": record.domain, "speaker": record.speaker}
    head = json.dumps({k: v for k, v in header.items() if v}, ensure_ascii=False).encode()
    sound = io.BytesIO()
    kind, subtype = CODECS[codec]
    soundfile.write(sound, np.clip(wav, -1, 1), rate, format=kind, subtype=subtype)
    return MAGIC + struct.pack("<I", len(head)) + head + sound.getvalue()


def unpack(data: bytes, label: str) -> Record:
    """Bytes -> Record. Raises AudioError, naming `label`, where they are not of this layout."""
    if data[:4] != MAGIC or len(data) < 8:
        raise AudioError(f"{label}: is not one of our records (see data/arrayrecords.py)")
    (size,) = struct.unpack_from("<I", data, 4)
    try:
        header = json.loads(data[8 : 8 + size])
        words = tuple((float(a), float(b), str(word)) for a, b, word in header.get("words", ()))
        name, text, domain, speaker = map(header.get, ("name", "text", "domain", "speaker"))
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise AudioError(f"{label}: has a damaged header ({error})") from error
    texts = [value for value in (text, domain, speaker) if value is not None]
    if not name or not all(isinstance(value, str) for value in (name, *texts)):
        raise AudioError(f"{label}: has a damaged header (name, text, domain, speaker: {header})")
    if domain is not None and domain not in DOMAINS:
        raise AudioError(f"{label}: domain {domain!r} is not one of {', '.join(DOMAINS)}")
    sound = EncodedSound(data[8 + size :], f"{label} ({name})")
    return Record(name, sound, text, words, domain, speaker)


@contextlib.contextmanager
def shard_writer(path: Path) -> Iterator[Callable[[bytes, str, str | None], None]]:
    """`write(data, name, speaker)` for one shard; it and its sidecar are there once all is well."""
    names: list[str] = []
    # One record a chunk: a random read touches nothing else. Audio is compressed already.
    options = "group_size:1,uncompressed"
    with files.replacing(path) as partial:  # after the sidecar: a shard that exists is complete
        writer = array_record_module.ArrayRecordWriter(str(partial), options)

        def write(data: bytes, name: str, speaker: str | None) -> None:
            writer.write(data)
            names.append(f"{_flat(name)}\t{_flat(speaker or '')}\n")

        try:
            yield write
        finally:
            writer.close()
        with files.replacing(_sidecar(path)) as sidecar:
            sidecar.write_text("".join(names), "utf-8")


def _flat(text: str) -> str:
    return " ".join(text.split())


def _sidecar(shard: Path) -> Path:
    return shard.with_suffix(_NAMES)


class ArrayRecordSource:
    """All records of the shards that a glob (or a folder) names, in order of file name."""

    def __init__(self, pattern: str):
        """Raises AudioError where no shard, or no sidecar to one, is found."""
        self.paths = stores.expand(pattern, SUFFIX)
        if not self.paths:
            raise AudioError(f"{pattern}: no {SUFFIX} file matches")
        self.label = stores.folder_name(self.paths[0])
        self._names: list[str] = []
        self._groups: list[str] = []
        self.shards: list[int] = []  # records of each file
        for path in self.paths:
            self._add_names(path)
            self.shards.append(len(self._names) - sum(self.shards))
        self._reader = open_shards(self.paths, "write the set again with llmcodec_jax.data.prepare")
        if len(self._reader) != len(self._names):
            raise AudioError(
                f"{pattern}: {len(self._reader)} records but {len(self._names)} names beside them; "
                "write the set again with llmcodec_jax.data.prepare"
            )

    def _add_names(self, shard: str) -> None:
        names = shard.removesuffix(SUFFIX) + _NAMES
        try:
            lines = stores.read(names).decode("utf-8").splitlines()
        except FileNotFoundError as error:
            raise AudioError(
                f"{shard}: {Path(names).name} is missing beside it; copy it too, or write the set "
                "again with llmcodec_jax.data.prepare"
            ) from error
        for line in lines:
            name, _, speaker = line.partition("\t")
            self._names.append(name)
            self._groups.append(speaker or name)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def group(self, index: int) -> str:
        return self._groups[index]

    def record(self, index: int) -> Record:
        label = f"{self.label}, record {index}"
        return unpack(self._reader.read(index, label), label)
