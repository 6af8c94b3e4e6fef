"""One door for language models: a Hugging Face folder, a converted folder, or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from llmcodec_jax.lm.config import LMConfig
from llmcodec_jax.lm.tokenizer import TextTokenizer


def load_lm(
    path: str | Path, dtype=jnp.bfloat16, shardings=None
) -> tuple[LMConfig, Any, TextTokenizer | None]:
    """Path -> (config, params, tokenizer); the tokenizer is None where a folder has none.

    `shardings` is a tree like the parameters (see `lm.qwen3`) or None. Raises
    FileNotFoundError or ConfigError, naming the file.
    """
    from llmcodec_jax.lm import gguf, huggingface

    path = Path(path)
    if path.suffix == ".gguf":
        return gguf.load(path, dtype, shardings)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: neither a model folder nor a .gguf file")
    config, params = huggingface.load(path, dtype, shardings)
    tokenizer = path / "tokenizer.json"
    return config, params, TextTokenizer.from_file(tokenizer) if tokenizer.exists() else None
