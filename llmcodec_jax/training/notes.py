"""What a checkpoint says about itself: one JSON text beside the arrays, in the same commit.

Every leaf of the state has a checksum there, computed on the devices before the save and again
after the restore, so that a bit that changed anywhere in between is found. The text carries a
digest of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from llmcodec_jax.errors import UserError
from llmcodec_jax.training.optim import path_name

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
    leaves = jax.tree.leaves(tree)
    where = next((x.sharding for x in leaves if isinstance(x.sharding, NamedSharding)), None)
    where = NamedSharding(where.mesh, P()) if where else None
    sums = jax.device_get(_checksums(where)(leaves))
    described = describe(tree).items()
    return {
        name: leaf._replace(checksum=int(value))
        for (name, leaf), value in zip(described, sums, strict=True)
    }


_JITTED: dict[Any, Any] = {}


def _checksums(where: NamedSharding | None):
    """Arrays -> uint32 [number of arrays], on every device of `where`."""
    if where not in _JITTED:
        _JITTED[where] = jax.jit(
            lambda leaves: jnp.stack([_checksum(x) for x in leaves]), out_shardings=where
        )
    return _JITTED[where]


def _checksum(x: jax.Array) -> jax.Array:
    """uint32 []: the sum of a hash of (bits, place) over all elements.

    Integer sums do not depend on their order, so that every mesh finds the same number; the hash
    is a bijection of the bits at a place, so that one changed element is always noticed.
    """
    bits = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    width = {1: jnp.uint8, 2: jnp.uint16}.get(bits.dtype.itemsize, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(bits, width).astype(jnp.uint32)
    place, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place = place + index * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    return jnp.sum(_mix(bits ^ _mix(place + jnp.uint32(1))), dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of uint32 that spreads every bit: the finaliser of MurmurHash3."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
