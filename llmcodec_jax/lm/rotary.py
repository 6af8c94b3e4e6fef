"""Rotary positions, halves-rotated convention, with the published wavelength stretchings."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax.lm.config import LMConfig


def rotary_angles(config: LMConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """positions int [B, T] -> (cos, sin) float32 [B, T, head_dim]."""
    angles = positions[..., None].astype(jnp.float32) * frequencies(config)
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def frequencies(config: LMConfig) -> np.ndarray:
    """Radians per position, float32 [head_dim / 2], after `config.rope_scaling`."""
    exponent = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequency = config.rope_theta**-exponent
    scaling = config.rope_scaling
    if scaling is None:
        return frequency.astype(np.float32)
    if scaling.kind == "linear":
        return (frequency / scaling.factor).astype(np.float32)
    # llama3: long wavelengths are stretched by the factor, short ones kept, a ramp between.
    turns = scaling.original_length * frequency / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (frequency * (keep + (1 - keep) / scaling.factor)).astype(np.float32)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """x [B, T, heads, head_dim] turned by its position's angles; float32 inside."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    x32 = x.astype(jnp.float32)
    return (x32 * cos[:, :, None] + turned * sin[:, :, None]).astype(x.dtype)
