"""What a checkpoint says about itself: one JSON text beside the arrays, in the same commit.

Every leaf of the state has a checksum there, computed before the save and again after the
restore, so that a bit that changed anywhere in between is found. The text carries a digest of
its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from jax import Shard
from jax.experimental import multihost_utils

from llmcodec_jax.errors import UserError
from llmcodec_jax.training.optim import path_name

CHUNK = 1 << 16  # elements hashed at once: what a core's cache holds
SPREAD = np.uint32(0x9E3779B1)  # odd: places differ by it in all their bits
FORMAT = 2  # 1: config and lm_digest alone, the data position beside them


class DamagedCheckpointError(UserError):
    """One checkpoint's files are not what was written."""


class Leaf(NamedTuple):
    """One array of the state."""

    dtype: str
    shape: list[int]
    checksum: int | None = None  # None: not computed


@dataclasses.dataclass(frozen=True)
class Notes:
    """A checkpoint's notes. `leaves` is None in files of format 1, which had no checksums."""

    step: int
    config: dict
    lm_digest: str
    position: dict  # of the data: the loader's state before the step's batch
    mel: float | None = None  # held-out distance at this very step, where it was evaluated
    leaves: dict[str, Leaf] | None = None

    def to_fields(self) -> dict:
        """JSON-able, with the digest of everything else."""
        mel = self.mel if self.mel is not None and math.isfinite(self.mel) else None
        leaves = {name: list(leaf) for name, leaf in (self.leaves or {}).items()}
        fields = dataclasses.asdict(self) | {"format": FORMAT, "mel": mel, "leaves": leaves}
        return fields | {"digest": _digest(fields)}

    @classmethod
    def from_text(cls, text: str, step: int) -> Notes:
        """The inverse, for the checkpoint of `step`. Raises DamagedCheckpointError."""
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise DamagedCheckpointError(f"its notes are not JSON ({error})") from error
        if not isinstance(fields, dict) or not {"config", "lm_digest"} <= fields.keys():
            raise DamagedCheckpointError("its notes lack the config")
        if "digest" not in fields and "format" not in fields:
            return cls(step, fields["config"], fields["lm_digest"], position={})
        digest = fields.pop("digest", None)
        if digest != _digest(fields) or fields.pop("format") != FORMAT:
            raise DamagedCheckpointError("its notes were changed since they were written")
        if fields["step"] != step:
            raise DamagedCheckpointError(f"its notes are those of step {fields['step']}")
        fields["leaves"] = {name: Leaf(*leaf) for name, leaf in fields["leaves"].items()}
        return cls(**fields)


def _digest(fields: dict) -> str:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def describe(tree) -> dict[str, Leaf]:
    """Shapes and dtypes of a tree of arrays, by path; nothing is computed."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): Leaf(str(x.dtype), list(x.shape)) for path, x in found}


def describe_with_checksums(tree) -> dict[str, Leaf]:
    """`describe` with every leaf's checksum. All processes must call it."""
    # Of every shard the first copy, wherever that is.
    own = [[s for s in x.addressable_shards if s.replica_id == 0] for x in jax.tree.leaves(tree)]
    for shards in own:
        for shard in shards:
            shard.data.copy_to_host_async()
    shapes = [x.shape for x in jax.tree.leaves(tree)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        sums = np.array(list(pool.map(_sum_of_shards, own, shapes)), np.uint32)
    if jax.process_count() > 1:
        sums = multihost_utils.process_allgather(sums).sum(axis=0, dtype=np.uint32)
    return {
        name: leaf._replace(checksum=int(value))
        for (name, leaf), value in zip(describe(tree).items(), sums, strict=True)
    }


def _sum_of_shards(shards: list[Shard], shape: tuple[int, ...]) -> np.uint32:
    """This process's part of the checksum of an array."""
    sums = [checksum(np.asarray(shard.data), shard.index, shape) for shard in shards]
    return np.sum(np.array(sums, np.uint32), dtype=np.uint32)


def checksum(part: np.ndarray, index: tuple[slice, ...], shape: tuple[int, ...]) -> np.uint32:
    """Checksum of `part`, which is `array[index]` of an array of `shape`.

    It is the sum, modulo 2^32, of a hash of (bits, place) over the elements. Sums do not depend on
    their order, so that parts add up to the same number on every mesh; the hash is a bijection of
    the bits at each place, so that one changed element is always noticed.
    """
    width = {1: np.uint8, 2: np.uint16}.get(part.dtype.itemsize, np.uint32)
    bits = np.ascontiguousarray(part)[..., None].view(width).reshape(-1)
    if part.shape == tuple(shape):
        places = None
    else:
        places = _places(index, (*shape, bits.size // max(part.size, 1)))
    total = 0
    for first in range(0, bits.size, CHUNK):
        x = bits[first : first + CHUNK].astype(np.uint32)
        if places is None:
            x ^= np.arange(first, first + x.size, dtype=np.uint32) * SPREAD
        else:
            x ^= places[first : first + CHUNK] * SPREAD
        total += int(np.sum(_mix(x), dtype=np.uint32))
    return np.uint32(total % 2**32)


def _places(index: tuple[slice, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Place of every element of `array[index]` in the whole array, modulo 2^32."""
    places, stride = np.zeros((), np.uint32), 1
    for size, chosen in zip(reversed(shape), reversed((*index, slice(None))), strict=True):
        along = np.arange(size, dtype=np.uint32)[chosen] * np.uint32(stride % 2**32)
        places = along.reshape(-1, *[1] * places.ndim) + places
        stride *= size
    return places.reshape(-1)


def _mix(x: np.ndarray) -> np.ndarray:
    """A bijection of uint32 that spreads every bit (MurmurHash3's finaliser), in place."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x ^= x >> shift
        x *= np.uint32(factor)
    x ^= x >> 16
    return x
