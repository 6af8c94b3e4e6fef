"""ArrayRecord files in object stores: an index of chunks, then one ranged read a record.

The library reads local files alone. The format (Riegeli records with ArrayRecord's footer): blocks
of 64 KiB, each with a header of 24 bytes that is no part of the data; chunks of a header of 40
bytes and data; in the last block a chunk that says where the footer is, and in the footer the
place of every chunk. Checksums are left to the transport and to the audio decoders.
"""

from __future__ import annotations

import bisect
import functools
import struct
from collections.abc import Sequence

import pyarrow as pa

from llmcodec_jax.audio import AudioError
from llmcodec_jax.data import block_cache

_BLOCK, _BLOCK_HEADER, _CHUNK_HEADER = 1 << 16, 24, 40
_COMPRESSION = {ord("z"): "zstd", ord("b"): "brotli"}
_DAMAGE = (struct.error, IndexError, ValueError, OverflowError, pa.ArrowException)


class RemoteShards:
    """Random access to the records of several files, in order; picklable."""

    def __init__(self, uris: Sequence[str], remedy: str):
        """Raises AudioError naming the first file that is no whole shard, and the `remedy`."""
        self._uris = list(uris)
        self._chunks: list[list[tuple[int, int]]] = []  # of a file: (first record, offset), end
        self._starts = [0]
        for uri in self._uris:
            try:
                chunks, count = _index(uri)
            except (*_DAMAGE, FileNotFoundError) as error:
                raise AudioError(
                    f"{uri}: is no whole shard ({error}); copy it again, or {remedy}"
                ) from error
            self._chunks.append(chunks)
            self._starts.append(self._starts[-1] + count)

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, index: int, label: str) -> bytes:
        """One record's bytes. Raises AudioError, naming `label`, where they are damaged."""
        which = bisect.bisect_right(self._starts, index) - 1
        chunks, row = self._chunks[which], index - self._starts[which]
        number = bisect.bisect_right(chunks, (row, 1 << 62)) - 1
        first, offset = chunks[number]
        try:
            return _records(self._uris[which], offset, chunks[number + 1][1])[row - first]
        except _DAMAGE as error:
            raise AudioError(f"{label}: is damaged ({error})") from error


def _index(uri: str) -> tuple[list[tuple[int, int]], int]:
    """A file's chunks with the footer as their end, and how many records they hold."""
    size = block_cache.size(uri)
    if size < 2 * _BLOCK or size % _BLOCK:
        raise ValueError(f"{size} bytes")
    postscript = _fields(_records(uri, size - _BLOCK, size)[0])
    footer = postscript[1]
    chunks, count = [], 0
    for message in _records(uri, footer, size - _BLOCK)[1:]:
        fields = _fields(message)
        chunks.append((count, fields[1]))
        count += fields.get(3, 0)
    return [*chunks, (count, footer)], count


@functools.lru_cache(maxsize=8)  # a chunk of several records serves all of them
def _records(uri: str, offset: int, end: int) -> tuple[bytes, ...]:
    """The records of the chunk that begins at `offset` and ends before `end`."""
    data = _without_headers(block_cache.read(uri, offset, end), offset)
    _, size, _, kind, decoded = struct.unpack_from("<5Q", data)
    if kind & 255 != ord("r") or size > len(data) - _CHUNK_HEADER:
        raise ValueError(f"no chunk of records at {offset}")
    body = data[_CHUNK_HEADER : _CHUNK_HEADER + size]
    sizes_length, place = _varint(body, 1)
    sizes = _unpacked(body[0], body[place : place + sizes_length])
    values = _unpacked(body[0], body[place + sizes_length :])
    if len(values) != decoded:
        raise ValueError(f"{len(values)} bytes instead of {decoded} at {offset}")
    records, at, begin = [], 0, 0
    for _ in range(kind >> 8):
        length, at = _varint(sizes, at)
        records.append(values[begin : begin + length])
        begin += length
    return tuple(records)


def _without_headers(data: bytes, offset: int) -> bytes:
    """The bytes from `offset` of a file on, without the headers at the starts of blocks."""
    pieces, place = [], 0
    while place < len(data):
        inside = (offset + place) % _BLOCK
        if inside < _BLOCK_HEADER:
            place += _BLOCK_HEADER - inside
            inside = _BLOCK_HEADER
        pieces.append(data[place : place + _BLOCK - inside])
        place += _BLOCK - inside
    return b"".join(pieces)


def _unpacked(kind: int, data: bytes) -> bytes:
    if not kind:
        return data
    if kind not in _COMPRESSION:
        raise ValueError(f"compression {chr(kind)!r} is not known")
    size, place = _varint(data, 0)
    return pa.decompress(data[place:], size, codec=_COMPRESSION[kind], asbytes=True)


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number of 7 bits a byte, least first -> (number, place after it)."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _fields(message: bytes) -> dict[int, int]:
    """The whole numbers of a protocol buffer message, by field."""
    found, place = {}, 0
    while place < len(message):
        tag, place = _varint(message, place)
        value, place = _varint(message, place)
        if tag & 7 == 2:  # bytes: passed over
            place += value
        else:
            found[tag >> 3] = value
    return found
