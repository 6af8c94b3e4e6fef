"""Future-token heads (method.md 4): K bias-free maps from the LM's state to the next K codes."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from llmcodec_jax.ops import files

HEADS_NAME = "ftp_heads.safetensors"


def repeat_rows(head_rows: jax.Array, horizons: int) -> jax.Array:
    """Audio head rows [V, H] -> heads [K, V, H], each a copy: none starts from noise."""
    return jnp.repeat(head_rows[None], horizons, axis=0)


def start_heads(head_rows: jax.Array, horizons: int, kind: str) -> jax.Array:
    """Heads [K, V, H] to start from: the heads that a teacher was taught, or copies of `head_rows`.

    `kind` "from:FOLDER" (see `lm.vocab.audio_head_init`) takes the first K of the heads beside the
    model in FOLDER, where there are any; past those that were taught, the last one is repeated.
    """
    path = Path(kind.removeprefix("from:")) / HEADS_NAME
    if not kind.startswith("from:") or not path.is_file():
        return repeat_rows(head_rows, horizons)
    taught = jnp.asarray(load_file(path)["heads"], jnp.float32)
    if taught.shape[1:] != head_rows.shape:
        raise ValueError(f"{path}: heads are {taught.shape[1:]}, this run needs {head_rows.shape}")
    return taught[np.minimum(np.arange(horizons), len(taught) - 1)]


def save_heads(folder: str | Path, heads: jax.Array) -> None:
    """Writes heads [K, V, H] beside a merged model."""
    with files.replacing(Path(folder) / HEADS_NAME) as partial:
        save_file({"heads": np.asarray(heads, np.float32)}, str(partial))


def horizon_weights(horizons: int) -> np.ndarray:
    """w_k = (1/k) / sum_j (1/j) for k = 1..K, float32 [K], summing to one."""
    weights = 1.0 / np.arange(1, horizons + 1)
    return (weights / weights.sum()).astype(np.float32)
