"""The device mesh and who lives where on it: one table of rules by parameter name."""

from __future__ import annotations

import math
import re

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from llmcodec_jax.errors import UsageError
from llmcodec_jax.ops.placement import BATCH_AXES
from llmcodec_jax.training.optim import path_name

AXES = ("data", "fsdp", "tensor")

STATE_RULES = (
    (r".*ftp_heads", P(None, ("fsdp", "tensor"), None)),  # vocabulary rows [K, V, H]
    # [V, H], split by channels: the bridge walks the codes, which must not cross devices.
    (r".*audio_embedding", P(None, ("fsdp", "tensor"))),
    (r".*", P()),  # codec, discriminators, bank, counters: replicated
)
"""(pattern over the whole path, spec); the first match holds. Optimiser moments follow their
parameter, because their paths end in the parameter's."""

LM_RULES = (
    (r"embed/embedding", P("tensor", "fsdp")),
    (r"lm_head/kernel", P("fsdp", "tensor")),
    (r"blocks/.*(q_proj|k_proj|v_proj|gate_proj|up_proj)/kernel", P(None, "fsdp", "tensor")),
    (r"blocks/.*(o_proj|down_proj)/kernel", P(None, "tensor", "fsdp")),
    (r".*", P()),
)
"""The frozen LM: layers stacked in front, weights split over fsdp and tensor."""


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """Mesh over all devices; one axis may be -1 and takes what the others leave.

    Raises UsageError where the sizes do not multiply to the device count, or a clip's devices are
    not of one process.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1:
        raise UsageError("at most one mesh axis may be -1")
    if -1 in sizes:
        known = -math.prod(sizes)
        sizes[sizes.index(-1)] = max(len(devices) // known, 1)
    if math.prod(sizes) != len(devices):
        raise UsageError(f"mesh {dict(zip(AXES, sizes, strict=True))} on {len(devices)} devices")
    if devices[0].platform == "tpu":  # neighbours in the mesh are neighbours on the torus
        arranged = create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        arranged = np.asarray(devices).reshape(sizes)
    check_processes(arranged)
    return Mesh(arranged, AXES)


def check_processes(devices: np.ndarray) -> None:
    """Raises UsageError where a process would not hold whole clips of its own.

    `devices` [data, fsdp, tensor]. Each process reads its own clips, so the devices that share a
    clip (tensor) must be of one process, and each process must have as many clips as any other.
    """
    owners = np.vectorize(lambda device: device.process_index)(devices)
    owners = owners.reshape(-1, devices.shape[-1])
    if (owners != owners[:, :1]).any():
        raise UsageError(
            f"mesh.tensor={devices.shape[-1]} spans processes: the devices that share a clip must "
            f"be of one process; choose mesh.tensor to divide the devices of each"
        )
    _, shares = np.unique(owners[:, 0], return_counts=True)
    if len(set(shares.tolist())) > 1:
        raise UsageError(f"processes hold {shares.tolist()} shares of a batch; they must be equal")


def _fits(spec: P, shape: tuple[int, ...], mesh: Mesh) -> bool:
    """Whether every split dimension divides by its mesh axes."""
    for size, axes in zip(shape, spec, strict=False):
        names = (axes,) if isinstance(axes, str) else (axes or ())
        if size % math.prod(mesh.shape[n] for n in names):
            return False
    return len(spec) <= len(shape)


def shardings(tree, mesh: Mesh, rules) -> object:
    """Tree of arrays or shapes -> tree of NamedSharding; what does not divide is replicated."""
    compiled = [(re.compile(pattern), spec) for pattern, spec in rules]

    def leaf(path, x):
        name = path_name(path)
        spec = next(spec for pattern, spec in compiled if pattern.fullmatch(name))
        return NamedSharding(mesh, spec if _fits(spec, x.shape, mesh) else P())

    return jax.tree_util.tree_map_with_path(leaf, tree)


def placed(tree, where):
    """Shapes (or arrays) and their shardings -> shapes that carry their shardings."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, where
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Clips are split over data and fsdp."""
    return NamedSharding(mesh, P(BATCH_AXES))


def batch_shards(mesh: Mesh) -> int:
    """Over how many devices clips are split; the batch size must be a multiple."""
    return math.prod(mesh.shape[name] for name in BATCH_AXES)


def put_batch(batch, mesh: Mesh):
    """This process's clips (numpy) -> the global, sharded batch of all processes' clips."""
    sharding, processes = batch_sharding(mesh), jax.process_count()

    def put(x: np.ndarray) -> jax.Array:
        whole = (len(x) * processes, *x.shape[1:])
        return jax.make_array_from_process_local_data(sharding, x, whole)

    return jax.tree.map(put, batch)


def put_whole(batch, mesh: Mesh):
    """A batch (numpy) that every process holds whole -> sharded, if its size divides."""
    divides = len(batch.wav_length) % batch_shards(mesh) == 0
    sharding = batch_sharding(mesh) if divides else replicated(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), batch
    )


def gather(tree, mesh: Mesh):
    """Arrays of any sharding -> numpy, whole, on every process. All processes must call it."""
    return jax.device_get(jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree))
