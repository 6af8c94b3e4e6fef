"""The token file: one `.npz` a clip, a frozen format.

| field       | dtype, shape             | meaning                                              |
|-------------|--------------------------|------------------------------------------------------|
| codes       | int32 [T] or [T, levels] | one code (or one a level) per frame                  |
| sample_rate | int32                    | the codec's rate in Hz, not the source file's        |
| num_samples | int64                    | clip length at that rate; T = ceil(num_samples / hop) |

Code i of the first level is the LM token `<CODEC_i>`; code i of level q is `<CODEC_{q * V + i}>`.
"""

from __future__ import annotations

import dataclasses
import os
import zipfile
from pathlib import Path

import numpy as np


class TokenError(ValueError):
    """A token file that cannot be used; the message names the file and the reason."""


@dataclasses.dataclass(frozen=True)
class Tokens:
    """One clip's codes."""

    codes: np.ndarray  # int32 [T] or [T, levels]
    sample_rate: int  # Hz
    num_samples: int


def write(path: str | Path, tokens: Tokens) -> None:
    """Writes one token file, atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(partial, "wb") as file:
            np.savez(
                file,
                codes=np.asarray(tokens.codes, np.int32),
                sample_rate=np.int32(tokens.sample_rate),
                num_samples=np.int64(tokens.num_samples),
            )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: str | Path) -> Tokens:
    """Reads one token file. Raises TokenError for a damaged file or missing fields."""
    try:
        with np.load(path, allow_pickle=False) as file:
            fields = {name: file[name] for name in ("codes", "sample_rate", "num_samples")}
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise TokenError(f"{path}: not a readable token file ({error})") from error
    codes = fields["codes"]
    if codes.ndim not in (1, 2) or not np.issubdtype(codes.dtype, np.integer) or not len(codes):
        raise TokenError(f"{path}: codes are {codes.dtype} {codes.shape}, not integers [T]")
    return Tokens(codes, int(fields["sample_rate"]), int(fields["num_samples"]))


def vocabulary_index(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """Codes [T] or [T, levels] -> numbers i of `<CODEC_i>`, frame by frame, int32 [T * levels]."""
    if codes.ndim == 1:
        return np.asarray(codes, np.int32)
    levels = np.arange(codes.shape[1], dtype=np.int32) * codebook_size
    return (codes + levels).reshape(-1).astype(np.int32)
