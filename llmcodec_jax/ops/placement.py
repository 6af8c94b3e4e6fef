"""What the mesh that `jax.set_mesh` put in force means for arrays inside the step.

Without a mesh everything here is the identity, so that modules need not know where they run.
"""

from __future__ import annotations

import math

import jax
from jax.sharding import PartitionSpec as P

BATCH_AXES = ("data", "fsdp")
"""Mesh axes that clips are split over."""

WEIGHT_AXES = ("fsdp", "tensor")
"""Mesh axes that large weights are split over."""


def current_mesh():
    """The mesh in force, or None."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def axes_in(mesh, names: tuple[str, ...], size: int) -> tuple[str, ...]:
    """Those of the mesh axes `names` with more than one device, if together they divide `size`."""
    found = tuple(n for n in names if n in mesh.axis_names and mesh.shape[n] > 1)
    return found if size % math.prod(mesh.shape[n] for n in found) == 0 else ()


def keep_split_by_clip(x: jax.Array) -> jax.Array:
    """Keeps x [B, ...] split by clips: weights are to travel to the clips, not the reverse.

    Left to itself the partitioner may split the channels instead, because the weights are.
    """
    mesh = current_mesh()
    axes = axes_in(mesh, BATCH_AXES, x.shape[0]) if mesh else ()
    return jax.lax.with_sharding_constraint(x, P(axes)) if axes else x
