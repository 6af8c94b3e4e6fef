"""A clip's loudness as the first level of its codes, for codecs that hear all clips equally loud.

EnCodec 48 kHz divides each piece of audio by its root mean square and publishes that number beside
the codes (Defossez et al. 2022, section 3.1; transformers' `audio_scales`). Here it is a scalar
quantiser in front of the residual levels, so that codes alone carry the sound: V steps from full
scale down by FLOOR / V decades each, 0.1 dB where V is 1,024. The latent and what the decoder reads
have one more channel, its log10.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from llmcodec_jax.codec.conv.layers import mask_time

FLOOR = 5.12  # decades of amplitude below full scale: 102.4 dB
EPSILON = 1e-8  # added to the root mean square, as published


def measure(wav: jax.Array, length: jax.Array | None) -> jax.Array:
    """wav [B, N], length int32 [B] in samples or None -> root mean square float32 [B]."""
    steps = wav.shape[1] if length is None else jnp.maximum(length, 1)
    kept = mask_time(wav[..., None], length)[..., 0].astype(jnp.float32)
    return jnp.sqrt(jnp.sum(jnp.square(kept), axis=1) / steps) + EPSILON


def level_table(codes: int, width: int) -> jax.Array:
    """The level's codebook float32 [V, width]: log10 of amplitudes, then zeros."""
    steps = jnp.arange(codes, dtype=jnp.float32) * (-FLOOR / codes)
    return jnp.pad(steps[:, None], ((0, 0), (0, width - 1)))


def nearest(log_loudness: jax.Array, codes: int) -> jax.Array:
    """log10 of amplitudes [...] -> the closest row of `level_table`, int32 [...]."""
    return jnp.clip(jnp.round(log_loudness * (-codes / FLOOR)), 0, codes - 1).astype(jnp.int32)
