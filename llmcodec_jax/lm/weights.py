"""Between our stacked parameter tree and one-tensor-per-layer files; and a model's identity."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from llmcodec_jax.lm.config import ConfigError, LMConfig

Path = tuple[str, ...]


class TensorSource(Protocol):
    """Random access to named tensors in Hugging Face layout (linear weights [out, in])."""

    label: str  # the file or folder, for messages

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """The part `index` of tensor `name`. Raises KeyError naming the file if absent."""


def source_name(path: Path) -> tuple[str, bool]:
    """Our path -> (Hugging Face name, with `{}` for the layer; whether it is transposed)."""
    *modules, leaf = path
    kind = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}[leaf]
    outer = {"embed": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head"}
    if modules[0] in outer:
        return f"{outer[modules[0]]}.{kind}", leaf == "kernel"
    inner = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    renamed = {"attn": "self_attn"} | inner
    name = ".".join(renamed.get(module, module) for module in modules[1:])
    return f"model.layers.{{}}.{name}.{kind}", leaf == "kernel"


def assemble(config: LMConfig, source: TensorSource, dtype, shardings=None) -> Any:
    """Reads a model into stacked parameters, each device asking only for its own slices.

    `shardings`: a tree like the parameters, a function that makes one from their shapes, or None
    for the default device. The host never holds more than one shard of one stacked leaf beside
    the source's memory map. Raises ConfigError naming a tensor that holds NaN or infinity.
    """
    from llmcodec_jax.lm.decoder import init_params

    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0), dtype))
    if callable(shardings):
        shardings = shardings(shapes)
    placed = {} if shardings is None else flatten_dict(shardings)
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    flat = {}
    for path, shape in flatten_dict(shapes).items():
        name, transposed = source_name(path)
        read = _reader(source, name, transposed, shape.shape, np.dtype(dtype))
        flat[path] = jax.make_array_from_callback(shape.shape, placed.get(path, default), read)
    return unflatten_dict(flat)


def _reader(source: TensorSource, name: str, transposed: bool, shape, dtype):
    """A callback that fills the slice `index` of one (stacked) leaf from its tensors."""

    def one(layer_name: str, index):
        part = source.read(layer_name, index[::-1] if transposed else index)
        if not np.isfinite(part).all():
            raise ConfigError(f"{source.label}: {layer_name} holds values that are not finite")
        part = part.T if transposed else part
        wanted = tuple(s.stop - s.start for s in index)
        if part.shape != wanted:
            raise ConfigError(
                f"{source.label}: {layer_name} has {part.shape} where the model's description asks "
                f"for {wanted}; config and tensors belong to different models"
            )
        return part

    def read(index):
        index = tuple(slice(*s.indices(n)) for s, n in zip(index, shape, strict=True))
        if "{}" not in name:
            return np.ascontiguousarray(one(name, index), dtype)
        layers = range(index[0].start, index[0].stop)
        # The last first: room is made for as many layers as there are, not as many as are claimed.
        last = one(name.format(layers[-1]), index[1:])
        stacked = np.empty((len(layers), *last.shape), dtype)
        stacked[-1] = last
        for slot, layer in enumerate(layers[:-1]):
            stacked[slot] = one(name.format(layer), index[1:])
        return stacked

    return read


def unstacked(params: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Parameters as (Hugging Face name, [out, in] host array) pairs, layer by layer."""
    for path, leaf in sorted(flatten_dict(params).items()):
        name, transposed = source_name(path)
        layers = range(leaf.shape[0]) if "{}" in name else (None,)
        for layer in layers:
            value = np.asarray(leaf if layer is None else leaf[layer])
            yield name.format(layer), np.ascontiguousarray(value.T if transposed else value)


def digest(params: Any) -> str:
    """A hash of names, shapes, dtypes and every bit: equal for any sharding, changed by one bit.

    Integer sums on the devices, so that a model sharded over many hosts is never gathered.
    """
    hasher = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(params).items()):
        hasher.update(f"{'/'.join(path)} {leaf.shape} {leaf.dtype} ".encode())
        hasher.update(np.asarray(_checksum(leaf)).tobytes())
    return hasher.hexdigest()


@jax.jit
def _checksum(leaf: jax.Array) -> jax.Array:
    """uint32 [2]: position-weighted sums of the bits modulo 2^32."""
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    bits = bits * jnp.uint32(0x9E3779B1) ^ place * jnp.uint32(0x85EBCA77)
    sums = []
    for multiplier in (0x7FEB352D, 0x846CA68B):
        mixed = (bits ^ (bits >> 16)) * jnp.uint32(multiplier)
        mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0xC2B2AE3D)
        sums.append(jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32))
    return jnp.stack(sums)
