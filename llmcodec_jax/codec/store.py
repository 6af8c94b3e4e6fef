"""A codec on disk: `codec.json` (every field of the module) and `codec.safetensors`.

The tensors carry the published names, so the folder's weights are also a valid export. Training
writes this folder into its run; `convert auv` writes it from a published checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import safetensors.numpy

from llmcodec_jax.codec import torch_file
from llmcodec_jax.codec.auv import published
from llmcodec_jax.codec.auv.model import AUV, to_fields


def save_codec_folder(
    path: str | Path, codec: AUV, variables: Mapping, dtype: str = "float32"
) -> None:
    """Writes `codec.json` and `codec.safetensors` into the folder `path`, each atomically."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    save_safetensors(path / published.WEIGHTS_NAME, codec, variables, dtype)
    text = json.dumps(to_fields(codec), indent=2) + "\n"
    _replace(path / published.CONFIG_NAME, text.encode())


def save_safetensors(
    path: str | Path, codec: AUV, variables: Mapping, dtype: str = "float32"
) -> None:
    """Writes one `.safetensors` of published names that carries the codec's fields with it.

    `dtype` "bfloat16" halves the file: weight matrices are rounded, while codebooks, biases,
    norms and running statistics, which are small, keep float32.
    """
    metadata = {"format": "np", "codec": json.dumps(to_fields(codec))}
    tensors = published.to_state_dict(codec, variables)
    for name, value in tensors.items():
        if value.ndim > 1 and "codebook" not in name:
            tensors[name] = value.astype(jnp.dtype(dtype))
    _replace(Path(path), safetensors.numpy.save(tensors, metadata))


def save_torch(path: str | Path, codec: AUV, variables: Mapping) -> None:
    """Writes a `.pt` in the published layout, which `torch.load(weights_only=True)` opens."""
    torch_file.write_state_dict(path, published.to_state_dict(codec, variables))


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
