"""The audio vocabulary (method.md 2): trainable rows `<CODEC_0>`... beside frozen text rows.

The audio rows are arrays of their own, never slices of the text table, so that training
cannot touch a text row; `lm.huggingface.export` merges the two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from safetensors.numpy import load_file, save_file

from llmcodec_jax.errors import UsageError

KINDS = ("text_distribution", "mean", "normal", "from:CHECKPOINT")
NORMAL_SCALE = 0.02


def audio_embedding_init(
    text_embedding: jax.Array, size: int, key: jax.Array, kind: str = "text_distribution"
) -> jax.Array:
    """Start rows of the audio tokens: text rows [Vt, H] -> float32 [size, H].

    "text_distribution" draws from a Gaussian with the text rows' mean and covariance (in the
    paper a random start costs 11 SALMon points), "mean" repeats their mean, "normal" draws
    N(0, 0.02^2), "from:CHECKPOINT" reads the rows of a merged model folder or of a file that
    `save_audio_rows` wrote. Raises ValueError for another kind or a wrong size.
    """
    width = text_embedding.shape[1]
    if kind == "text_distribution":
        return _like(text_embedding, size, key)
    if kind == "mean":
        mean = jnp.mean(text_embedding, axis=0, dtype=jnp.float32)
        return jnp.broadcast_to(mean, (size, width))
    if kind == "normal":
        return NORMAL_SCALE * jax.random.normal(key, (size, width))
    return _from_checkpoint(kind, (size, width))[0]


def audio_head_init(
    lm_params: Any, embedding: jax.Array, key: jax.Array, kind: str = "text_distribution"
) -> jax.Array:
    """Start rows of the audio head, float32 [V, H]: a trainable copy, never the same array.

    A tied model's head starts as its audio input rows, an untied one's from the distribution
    of its text head rows; "from:CHECKPOINT" reads the trained head rows.
    """
    if kind.startswith("from:"):
        return _from_checkpoint(kind, embedding.shape)[1]
    if "lm_head" not in lm_params:
        return jnp.array(embedding, copy=True)
    head_key = jax.random.fold_in(key, 1)
    return _like(lm_params["lm_head"]["kernel"].T, embedding.shape[0], head_key)


def _like(rows: jax.Array, size: int, key: jax.Array) -> jax.Array:
    """Draws `size` rows from the Gaussian with the mean and covariance of `rows` [N, H]."""
    rows = rows.astype(jnp.float32)
    mean = rows.mean(axis=0)
    centred = rows - mean
    covariance = jnp.matmul(centred.T, centred, precision="highest") / len(rows)
    width = covariance.shape[0]
    # Fewer rows than channels, or bfloat16 rows, leave it singular: a ridge far below its scale.
    ridge = 1e-5 * jnp.trace(covariance) / width + 1e-12
    factor = jnp.linalg.cholesky(covariance + ridge * jnp.eye(width))
    return mean + jax.random.normal(key, (size, width)) @ factor.T


def save_audio_rows(path: str | Path, embedding: jax.Array, head: jax.Array) -> None:
    """Writes trained rows [V, H] to a small .safetensors, for "from:PATH"."""
    tensors = {"audio_embedding": embedding, "audio_head": head}
    save_file({name: jax.device_get(value) for name, value in tensors.items()}, str(path))


def read_audio_rows(path: str | Path) -> tuple[jax.Array, jax.Array]:
    """(input rows, head rows), each float32 [V, H], of a merged folder or a saved file."""
    from llmcodec_jax.lm import huggingface

    path = Path(path)
    if path.is_dir():
        rows = huggingface.read_audio_rows(path)
    elif path.exists():
        tensors = load_file(path)
        rows = tensors["audio_embedding"], tensors["audio_head"]
    else:
        raise FileNotFoundError(f"{path}: no audio rows here (a merged folder or .safetensors)")
    return jnp.asarray(rows[0], jnp.float32), jnp.asarray(rows[1], jnp.float32)


def _from_checkpoint(kind: str, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    prefix, _, path = kind.partition(":")
    if prefix != "from" or not path:
        raise UsageError(f"audio rows can start from {', '.join(KINDS)}; not {kind!r}")
    rows = read_audio_rows(path)
    if rows[0].shape != tuple(shape):
        raise UsageError(f"{path}: audio rows are {rows[0].shape}, this run needs {shape}")
    return rows
