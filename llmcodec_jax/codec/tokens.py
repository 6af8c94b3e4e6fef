"""The token file: one `.npz` a clip, a frozen format that only grows.

| field         | dtype, shape             | meaning                                               |
|---------------|--------------------------|-------------------------------------------------------|
| codes         | int32 [T] or [T, levels] | one code (or one a level) per frame                   |
| sample_rate   | int32                    | the codec's rate in Hz, not the source file's         |
| num_samples   | int64                    | clip length at that rate; T = ceil(num_samples / hop) |
| codebook_size | int32                    | V: codes are in [0, V); absent in older files         |
| hop           | int32                    | samples per frame; absent in older files              |
| architecture  | string                   | family of the codec; absent in older files            |
| codec         | string                   | digest of the codec; absent in older files            |

Code i of the first level is the LM token `<CODEC_i>`; code i of level q is `<CODEC_{q * V + i}>`.

Files come from elsewhere too: every size is compared with the file before anything is read, and
nothing in it is evaluated. No field may take more than MAX_BYTES.
"""

from __future__ import annotations

import dataclasses
import lzma
import math
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from llmcodec_jax.errors import UserError
from llmcodec_jax.ops import files

MAX_BYTES = 1 << 28  # of one field, decompressed: 64 million codes, 15 days at 50 a second
MAX_FIELDS = 64
MAX_TEXT = 256  # characters of a string field
_HEADER = re.compile(  # of a .npy file as NumPy writes it for plain arrays
    r"\{'descr': '([<|][a-zA-Z][0-9]{1,4})', 'fortran_order': (False|True), "
    r"'shape': \(([0-9]{1,18}(?:, ?[0-9]{1,18})*,?)?\), ?\}\s*"
)
_DAMAGE = (
    *(OSError, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError, IndexError),
    *(struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError, OverflowError),
)
"""What reading a damaged archive may raise."""


class TokenError(UserError, ValueError):
    """A token file that cannot be used; the message names the file and the reason."""


@dataclasses.dataclass(frozen=True)
class Tokens:
    """One clip's codes, and which codec made them (None where an older file does not say)."""

    codes: np.ndarray  # int32 [T] or [T, levels]
    sample_rate: int  # Hz
    num_samples: int
    codebook_size: int | None = None  # V
    hop: int | None = None  # samples per frame
    architecture: str | None = None
    codec: str | None = None  # `store.digest`

    @property
    def levels(self) -> int:
        """Codes a frame."""
        return 1 if self.codes.ndim == 1 else self.codes.shape[1]


def of_codec(codec, codes: np.ndarray, num_samples: int) -> Tokens:
    """What an `inference.Codec` made of a clip of `num_samples` at its rate."""
    return Tokens(
        codes,
        codec.sample_rate,
        num_samples,
        codec.codebook_size,
        codec.hop,
        codec.architecture,
        codec.digest,
    )


def write(path: str | Path, tokens: Tokens) -> None:
    """Writes one token file, atomically."""
    fields: dict[str, Any] = {
        "codes": np.asarray(tokens.codes, np.int32),
        "sample_rate": np.asarray(tokens.sample_rate, np.int32),
        "num_samples": np.asarray(tokens.num_samples, np.int64),
    }
    for name in ("codebook_size", "hop"):
        if getattr(tokens, name) is not None:
            fields[name] = np.asarray(getattr(tokens, name), np.int32)
    for name in ("architecture", "codec"):
        if getattr(tokens, name) is not None:
            fields[name] = np.asarray(getattr(tokens, name), np.str_)
    with files.replacing(path) as partial, open(partial, "wb") as file:
        np.savez(file, **fields)


def read(path: str | Path) -> Tokens:
    """Reads one token file. Raises TokenError for a damaged, hostile or inconsistent one."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {info.filename for info in archive.infolist()}
            if len(names) > MAX_FIELDS:
                raise TokenError(f"{path}: {len(names)} fields, more than {MAX_FIELDS}")
            numbers = [n for n in ("codebook_size", "hop") if f"{n}.npy" in names]
            texts = [n for n in ("architecture", "codec") if f"{n}.npy" in names]
            about: dict[str, Any] = {name: _whole(archive, name) for name in numbers}
            about |= {name: _text(archive, name) for name in texts}
            tokens = Tokens(
                _array(archive, "codes"),
                _whole(archive, "sample_rate"),
                _whole(archive, "num_samples"),
                **about,
            )
    except TokenError:
        raise
    except _DAMAGE as error:
        raise TokenError(f"{path}: not a readable token file ({error})") from error
    _check(path, tokens)
    return dataclasses.replace(tokens, codes=np.asarray(tokens.codes, np.int32))


def _check(path: str | Path, tokens: Tokens) -> None:
    """Raises TokenError where the fields contradict each other or themselves."""
    codes = tokens.codes
    if codes.ndim not in (1, 2) or not np.issubdtype(codes.dtype, np.integer) or not codes.size:
        raise TokenError(f"{path}: codes are {codes.dtype} {codes.shape}, not integers [T]")
    size = tokens.codebook_size or 1 << 31
    if codes.min() < 0 or codes.max() >= size:
        raise TokenError(
            f"{path}: codes reach from {codes.min()} to {codes.max()}, not below {size}"
        )
    for name in ("sample_rate", "num_samples", "codebook_size", "hop"):
        value = getattr(tokens, name)
        if value is not None and value < 1:
            raise TokenError(f"{path}: {name} is {value}")
    if tokens.hop is not None and -(-tokens.num_samples // tokens.hop) != len(codes):
        raise TokenError(
            f"{path}: {len(codes)} codes for {tokens.num_samples} samples of {tokens.hop} a code"
        )


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One plain array of the archive. Raises TokenError, or what `_DAMAGE` lists."""
    info = archive.getinfo(f"{name}.npy")
    if info.file_size > MAX_BYTES:
        raise TokenError(
            f"{archive.filename}: {name} claims {info.file_size} bytes, more than {MAX_BYTES}"
        )
    with archive.open(info) as file:
        magic, version = file.read(6), file.read(2)
        if magic != b"\x93NUMPY" or version not in (b"\x01\x00", b"\x02\x00"):
            raise ValueError(f"{name} is no array")
        width, form = (2, "<H") if version[0] == 1 else (4, "<I")
        (length,) = struct.unpack(form, file.read(width))
        if length > 1024:
            raise ValueError(f"the header of {name} has {length} bytes")
        header = _HEADER.fullmatch(file.read(length).decode("latin1"))
        if header is None:
            raise ValueError(f"{name} is no plain array of numbers or text")
        kind = np.dtype(header[1])
        shape = tuple(int(n) for n in (header[3] or "").split(",") if n.strip())
        if kind.hasobject or len(shape) > 2:
            raise ValueError(f"{name} is {kind} {shape}")
        claimed = math.prod(shape) * kind.itemsize
        there = info.file_size - 8 - width - length
        if claimed != there:
            raise ValueError(f"{name} {shape} needs {claimed} bytes, {there} are there")
        data = file.read(claimed + 1)  # to the end, which compares the checksum
    if len(data) != claimed:
        raise ValueError(f"{name} has {len(data)} bytes instead of {claimed}")
    return np.frombuffer(data, kind).reshape(shape, order="F" if header[2] == "True" else "C")


def _whole(archive: zipfile.ZipFile, name: str) -> int:
    value = _array(archive, name)
    if value.shape != () or not np.issubdtype(value.dtype, np.integer):
        raise ValueError(f"{name} is {value.dtype} {value.shape}, not a whole number")
    return int(value)


def _text(archive: zipfile.ZipFile, name: str) -> str:
    value = _array(archive, name)
    if value.shape != () or value.dtype.kind != "U" or value.dtype.itemsize > 4 * MAX_TEXT:
        raise ValueError(f"{name} is {value.dtype} {value.shape}, not a short text")
    return str(value)


def vocabulary_index(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """Codes [T] or [T, levels] -> numbers i of `<CODEC_i>`, frame by frame, int32 [T * levels]."""
    if codes.ndim == 1:
        return np.asarray(codes, np.int32)
    levels = np.arange(codes.shape[1], dtype=np.int32) * codebook_size
    return (codes + levels).reshape(-1).astype(np.int32)
