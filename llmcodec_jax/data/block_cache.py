"""Pieces of large files in object stores, kept on the local disk and fetched ahead.

A file is read in blocks of BLOCK bytes, one request each. What has been read stays in the cache
folder, shared by all processes of the machine, until the folder exceeds its limit; then the
blocks that were used longest ago go. A reader that goes on from block to block has the next ones
fetched while it is busy. An object that is written anew with its old length is not noticed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from llmcodec_jax.data import stores
from llmcodec_jax.data.cache import cache_dir
from llmcodec_jax.errors import UsageError
from llmcodec_jax.ops import files

BLOCK = 1 << 22
AHEAD = 2  # blocks
LIMIT = "LLMCODEC_BLOCK_CACHE_GB"
"""Environment variable: the limit of the cache folder, 10^9 bytes (20)."""
_SLACK = 0.9  # of the limit that is left when blocks have to go


def limit() -> int:
    """Bytes that the cache may take. Raises UsageError."""
    text = os.environ.get(LIMIT, "20")
    try:
        return int(float(text) * 1e9)
    except ValueError as error:
        raise UsageError(f"{LIMIT}={text!r} is no number of gigabytes") from error


class BlockCache:
    """Ranged reads of files in stores through one folder; threads may share it."""

    def __init__(self, folder: Path, limit: int, block: int = BLOCK):
        self.folder, self._limit, self._block = folder, limit, block
        self._lock = threading.Lock()
        self._fetching: dict[Path, Future] = {}
        self._last: dict[str, int] = {}  # block last read, by file
        self._written: int | None = None  # bytes in the folder, as far as this process knows
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="read-ahead")

    def read(self, uri: str, start: int, stop: int, size: int) -> bytes:
        """Bytes [start, stop) of a file of `size` bytes. Raises FileNotFoundError, StoreError."""
        stop = min(stop, size)
        if stop <= start:
            return b""
        first, last = start // self._block, (stop - 1) // self._block
        pieces: list[bytes | Future] = []
        for number in range(first, last + 1):
            begin = number * self._block
            part = slice(max(start - begin, 0), min(stop - begin, self._block))
            found = self._kept(self._path(uri, number, size), number, size, part)
            pieces.append(self._ask(uri, number, size) if found is None else found)
        before, self._last[uri] = self._last.get(uri), last
        if before in (first - 1, first) and last > before:
            for number in range(last + 1, min(last + 1 + AHEAD, -(-size // self._block))):
                if not self._path(uri, number, size).exists():
                    self._ask(uri, number, size)
        whole = [piece.result() if isinstance(piece, Future) else piece for piece in pieces]
        for place, piece in enumerate(pieces):
            if isinstance(piece, Future):
                begin = (first + place) * self._block
                whole[place] = whole[place][max(start - begin, 0) : stop - begin]
        return b"".join(whole)

    def _kept(self, path: Path, number: int, size: int, part: slice) -> bytes | None:
        """A part of a block from the folder, which then counts as used now; None if not there."""
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != min(self._block, size - number * self._block):
                    return None
                os.utime(file.fileno())
                file.seek(part.start)
                return file.read(part.stop - part.start)
        except FileNotFoundError:
            return None

    def _ask(self, uri: str, number: int, size: int) -> Future:
        """The block as it will be; each is fetched once, however many ask."""
        path = self._path(uri, number, size)
        with self._lock:
            if path not in self._fetching:
                future = self._threads.submit(self._load, path, uri, number, size)
                self._fetching[path] = future
                future.add_done_callback(lambda _: self._fetching.pop(path, None))
                return future
            return self._fetching[path]

    def _path(self, uri: str, number: int, size: int) -> Path:
        name = hashlib.blake2b(f"{uri}\0{size}\0{self._block}".encode(), digest_size=16).hexdigest()
        return self.folder / name[:2] / f"{name}-{number:06d}"

    def _load(self, path: Path, uri: str, number: int, size: int) -> bytes:
        start = number * self._block
        stop = min(start + self._block, size)
        data = self._kept(path, number, size, slice(0, stop - start))
        if data is not None:
            return data
        data = stores.read_range(uri, start, stop)
        if len(data) != stop - start:
            raise stores.StoreError(
                f"{uri}: {len(data)} of {stop - start} bytes came; has it changed meanwhile?"
            )
        if stop - start <= self._limit:
            with files.replacing(path) as partial:
                partial.write_bytes(data)
            self._make_room(len(data))
        return data

    def _make_room(self, added: int) -> None:
        """Removes the blocks used longest ago once the folder is over its limit."""
        with self._lock:
            self._written = None if self._written is None else self._written + added
            if self._written is not None and self._written <= self._limit:
                return
            found = []
            for path in self.folder.glob("*/*-*"):
                with contextlib.suppress(FileNotFoundError):  # another process makes room too
                    about = path.stat()
                    found.append((about.st_mtime, about.st_size, path))
            total = sum(size for _, size, _ in found)
            if total > self._limit:
                for _, size, path in sorted(found):
                    if total <= _SLACK * self._limit:
                        break
                    path.unlink(missing_ok=True)
                    total -= size
            self._written = total


@functools.cache
def shared() -> BlockCache:
    """This process's cache, in the cache folder of the package."""
    return BlockCache(cache_dir() / "blocks", limit())


@functools.lru_cache(maxsize=1 << 20)
def size(uri: str) -> int:
    """Bytes of a file in a store, asked once a process."""
    return stores.size(uri)


def read(uri: str, start: int = 0, stop: int | None = None) -> bytes:
    """Bytes [start, stop) of a file here or in a store, the latter through the cache.

    Raises FileNotFoundError, StoreError.
    """
    if not stores.is_remote(uri):
        return stores.read_range(uri, start, stores.size(uri) if stop is None else stop)
    total = size(uri)
    return shared().read(uri, start, total if stop is None else stop, total)


class _Ranged(io.RawIOBase):
    """A file in a store, read by position."""

    def __init__(self, uri: str):
        self._uri, self._size, self._place = uri, size(uri), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(offset + (0, self._place, self._size)[whence], 0)
        return self._place

    def readinto(self, buffer) -> int:
        data = read(self._uri, self._place, min(self._place + len(buffer), self._size))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


def open_ranged(uri: str) -> io.BufferedReader:
    """A file in a store as a seekable binary file, read through the cache."""
    return io.BufferedReader(_Ranged(uri), buffer_size=1 << 18)
