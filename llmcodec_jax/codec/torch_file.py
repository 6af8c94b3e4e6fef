"""PyTorch checkpoint files (`.pt`) in and out, without PyTorch.

A `.pt` file is a zip archive: `data.pkl` describes nested containers of tensors, `data/N` holds
raw storages. Before PyTorch 1.6 it was one stream of the same parts. Reading runs nothing of the
description (torch_pickle.py), so a hostile file can at worst be refused.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llmcodec_jax.codec.torch_pickle import (
    DTYPES,
    Storage,
    TensorRef,
    TorchFileError,
    describe,
)
from llmcodec_jax.ops import files

STORAGES = {dtype: name for name, dtype in DTYPES.items()}
MAX_DESCRIPTION = 1 << 24  # bytes of data.pkl: a description, not the weights
MAX_COPIES = 4  # of a file's bytes in its tensors: tied weights share storages, bombs abound
LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e"
"""How files from before PyTorch 1.6 begin: a pickle of one magic number."""
LEGACY_PROTOCOL = 1001


class TensorFile:
    """An open `.pt` file: `contents` is its object with every tensor as a TensorRef."""

    contents: Any

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._storages: dict[str, bytes] = {}

    def _elements(self, storage: Storage, size: int) -> bytes:
        """The `size` bytes of a storage."""
        raise NotImplementedError

    def tensor(self, ref: TensorRef) -> np.ndarray:
        """Reads one tensor as a contiguous array of its stored dtype."""
        storage = ref.storage
        size = storage.count * storage.dtype.itemsize
        if storage.key not in self._storages:  # many tensors may be views of one
            self._storages[storage.key] = self._elements(storage, size)
        raw = self._storages[storage.key]
        if len(raw) != size:
            raise TorchFileError(
                f"{self.path}: storage {storage.key} has {len(raw)} bytes instead of {size}; "
                "fetch the file again"
            )
        flat = np.frombuffer(raw, storage.dtype)
        if any(n < 0 for n in (*ref.shape, *ref.stride, ref.offset)):
            raise TorchFileError(f"{self.path}: a tensor has a negative shape, stride or offset")
        if math.prod(ref.shape) == 0:
            return np.zeros(ref.shape, storage.dtype)
        last = ref.offset + sum((n - 1) * s for n, s in zip(ref.shape, ref.stride, strict=True))
        # A zero stride repeats elements; a real state dict never holds more than its storage.
        if last >= storage.count or math.prod(ref.shape) > storage.count:
            raise TorchFileError(f"{self.path}: a tensor reaches beyond its storage")
        strides = [s * storage.dtype.itemsize for s in ref.stride]
        view = np.lib.stride_tricks.as_strided(flat[ref.offset :], ref.shape, strides)
        return np.ascontiguousarray(view).reshape(ref.shape)


class Archive(TensorFile):
    """A `.pt` file of PyTorch 1.6 or later: a zip archive."""

    def __init__(self, path: str | Path):
        super().__init__(path)
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError) as error:
            raise TorchFileError(
                f"{path}: not a readable PyTorch file ({error}); fetch it again"
            ) from error
        names = [n for n in self._zip.namelist() if n.endswith("/data.pkl") or n == "data.pkl"]
        if len(names) != 1:
            raise TorchFileError(f"{path}: a zip archive, but not one PyTorch saved (no data.pkl)")
        self._prefix = names[0].removesuffix("data.pkl")
        order = self._prefix + "byteorder"
        if order in self._zip.namelist() and self._read(order).strip() != b"little":
            raise TorchFileError(f"{path}: holds big-endian tensors, which are not supported")
        description = io.BytesIO(self._read(names[0], MAX_DESCRIPTION))
        self.contents, _ = describe(self.path, description)

    def _read(self, name: str, limit: int | None = None) -> bytes:
        try:
            size = self._zip.getinfo(name).file_size
            if limit is not None and size > limit:
                raise TorchFileError(f"{self.path}: {name} claims {size} bytes; refused")
            return self._zip.read(name)
        except (KeyError, zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
            raise TorchFileError(
                f"{self.path}: {name} is missing or damaged ({error}); fetch the file again"
            ) from error
        except (RuntimeError, ValueError, zlib.error, struct.error) as error:
            if isinstance(error, TorchFileError):
                raise
            raise TorchFileError(f"{self.path}: {name} cannot be read ({error})") from error

    def _elements(self, storage: Storage, size: int) -> bytes:
        return self._read(f"{self._prefix}data/{storage.key}", size)


class LegacyFile(TensorFile):
    """A `.pt` file from before PyTorch 1.6: a stream of pickles, then of raw storages.

    Magic number, protocol, type sizes, the description, the storages' keys; then for each key an
    int64 count of elements and the elements.
    """

    def __init__(self, path: str | Path):
        super().__init__(path)
        self._starts: dict[str, int] = {}
        with self.path.open("rb") as file:
            _, protocol, system, described, listed = (describe(self.path, file) for _ in range(5))
            if protocol[0] != LEGACY_PROTOCOL or system[0].get("little_endian") is not True:
                raise TorchFileError(f"{path}: of another protocol or byte order, not supported")
            self.contents, storages = described
            for key in listed[0]:
                self._locate(file, storages.get(key), key)

    def _locate(self, file: BinaryIO, storage: Storage | None, key: str) -> None:
        """Notes where a storage's elements start, and goes to their end."""
        head = file.read(8)
        if storage is None or len(head) != 8 or struct.unpack("<q", head)[0] != storage.count:
            raise TorchFileError(
                f"{self.path}: storage {key} is missing or of another size; fetch the file again"
            )
        self._starts[key] = file.tell()
        file.seek(storage.count * storage.dtype.itemsize, os.SEEK_CUR)

    def _elements(self, storage: Storage, size: int) -> bytes:
        if storage.key not in self._starts:
            raise TorchFileError(f"{self.path}: storage {storage.key} is missing; fetch it again")
        with self.path.open("rb") as file:
            file.seek(self._starts[storage.key])
            return file.read(size)


def open_file(path: str | Path) -> TensorFile:
    """Opens a `.pt` file of either form. Raises TorchFileError where it is neither."""
    try:
        with Path(path).open("rb") as file:
            legacy = file.read(len(LEGACY)) == LEGACY
    except OSError as error:
        raise TorchFileError(f"{path}: not a readable PyTorch file ({error})") from error
    return LegacyFile(path) if legacy else Archive(path)


WRAPPERS = (
    "auv",
    "state_dict",
    "model_state_dict",
    "model_state",
    "best_state",
    "model",
    "generator",
)
"""Keys under which training checkpoints keep the one state dict that is of use."""
MAX_DEPTH = 8  # of state dicts within state dicts


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """`.pt` -> name -> array. State dicts of several parts get dotted names, "PART.NAME".

    A training checkpoint's state dict is found by itself (WRAPPERS). Raises TorchFileError for a
    file that is damaged, hostile or holds no state dict.
    """
    file = open_file(path)
    found = file.contents
    if not isinstance(found, Mapping):
        raise TorchFileError(f"{path}: holds a {type(found).__name__}, not a state dict")
    tensors = dict(_tensors(_unwrapped(found), "", MAX_DEPTH))
    if not tensors:
        raise TorchFileError(
            f"{path}: holds no tensors at its top level; its keys: {list(found)[:8]}"
        )
    storages = {ref.storage for ref in tensors.values()}
    claimed = max(
        sum(math.prod(ref.shape) * ref.storage.dtype.itemsize for ref in tensors.values()),
        sum(storage.count * storage.dtype.itemsize for storage in storages),
    )
    size = file.path.stat().st_size
    if claimed > MAX_COPIES * size:
        raise TorchFileError(
            f"{path}: its tensors claim {claimed} bytes, the file has {size}; refused"
        )
    return {name: file.tensor(ref) for name, ref in tensors.items()}


def _unwrapped(found: Mapping) -> Mapping:
    """The state dict within a training checkpoint, or the checkpoint itself.

    BigCodec's file has its encoder beside a "generator", and both are of use.
    """
    if "CodecEnc" in found:
        return found
    return next((found[key] for key in WRAPPERS if isinstance(found.get(key), Mapping)), found)


def _tensors(found: Mapping, prefix: str, depth: int) -> Iterator[tuple[str, TensorRef]]:
    """Every tensor below a mapping with its dotted name; what is no tensor is left out."""
    for name, value in found.items():
        if isinstance(name, str) and isinstance(value, TensorRef):
            yield prefix + name, value
        elif isinstance(name, str) and isinstance(value, Mapping) and depth:
            yield from _tensors(value, f"{prefix}{name}.", depth - 1)


class _Writer:
    """Emits the pickle of a flat state dict, protocol 2."""

    def __init__(self):
        self.out = bytearray(b"\x80\x02ccollections\nOrderedDict\n)R(")

    def text(self, value: str) -> None:
        raw = value.encode()
        self.out += b"X" + struct.pack("<I", len(raw)) + raw

    def integer(self, value: int) -> None:
        if 0 <= value < 2**31:
            self.out += b"J" + struct.pack("<i", value)
        else:
            raw = value.to_bytes(9, "little", signed=True)
            self.out += b"\x8a" + bytes([len(raw)]) + raw

    def integers(self, values: tuple[int, ...]) -> None:
        self.out += b"("
        for value in values:
            self.integer(value)
        self.out += b"t"

    def tensor(self, name: str, array: np.ndarray, key: str) -> None:
        self.text(name)
        self.out += b"ctorch._utils\n_rebuild_tensor_v2\n(("
        self.text("storage")
        self.out += f"ctorch\n{STORAGES[array.dtype]}\n".encode()
        self.text(key)
        self.text("cpu")
        self.integer(array.size)
        self.out += b"tQ"
        self.integer(0)
        self.integers(array.shape)
        self.integers(tuple(math.prod(array.shape[i + 1 :]) for i in range(array.ndim)))
        self.out += b"\x89ccollections\nOrderedDict\n)RtR"

    def finish(self) -> bytes:
        return bytes(self.out + b"u.")


def write_state_dict(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """name -> array to a `.pt` that `torch.load(weights_only=True)` opens; atomic, repeatable."""
    writer = _Writer()
    with (
        files.replacing(path) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive,
    ):

        def add(name: str, data) -> None:
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)

        for index, (name, value) in enumerate(tensors.items()):
            array = np.ascontiguousarray(value).reshape(np.shape(value))
            writer.tensor(name, array, str(index))
            add(f"data/{index}", array.tobytes())
        add("data.pkl", writer.finish())
        add("byteorder", b"little")
        add("version", b"3\n")
