"""The public face of the decoder: load a Qwen3 or Llama-family model and run it.

    config, params = load_qwen3(hf_dir, dtype)
    states = hidden_states(config, params, embeds, lengths)    # [layers + 1, B, T, H]
    scores = logits(config, params, embeds, lengths)           # float32 [B, T, Vt]

Both functions are those of `lm.decoder`, which says what `params` holds.
"""

from __future__ import annotations

import jax.numpy as jnp

from llmcodec_jax.lm.config import LMConfig
from llmcodec_jax.lm.decoder import Params, hidden_states, logits

__all__ = ["hidden_states", "load_qwen3", "logits"]


def load_qwen3(hf_dir, dtype=jnp.bfloat16, shardings=None) -> tuple[LMConfig, Params]:
    """Hugging Face folder of a Qwen3 or Llama-family model -> (config, params).

    Tensors are read one shard at a time (`lm.huggingface.load`); `shardings` is a tree
    like `params`, or None for the default device.
    """
    from llmcodec_jax.lm import huggingface

    return huggingface.load(hf_dir, dtype, shardings)
