"""A causal transformer with a sliding window, as Mimi has on either side of its quantiser."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax.codec.conv.layers import STREAM, TORCH_UNIFORM, is_streaming, matmul, precision

EPSILON = 1e-5


def rotate(x: jax.Array, first: int, theta: float) -> jax.Array:
    """Rotary positions first, first + 1, ..., halves convention: x [B, heads, T, d]."""
    half = x.shape[-1] // 2
    rate = np.float32(theta) ** (-np.arange(half, dtype=np.float32) / np.float32(half))
    angle = (first + np.arange(x.shape[2], dtype=np.float32))[:, None] * rate
    # Constants: XLA would take them anew for every head that reads them.
    cosine, sine = (jnp.asarray(f(angle), x.dtype) for f in (np.cos, np.sin))
    left, right = x[..., :half], x[..., half:]
    return jnp.concatenate([left * cosine - right * sine, right * cosine + left * sine], axis=-1)


class Linear(nn.Module):
    """A linear map without bias: `kernel` [inputs, features]."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, T, inputs] -> [B, T, features]."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", TORCH_UNIFORM, shape, jnp.float32)
        return matmul(x.astype(self.dtype), kernel.astype(self.dtype))


class Attention(nn.Module):
    """Each step reads itself and the `window - 1` steps before it.

    A stream keeps its last keys and values before their rotation: only differences of positions
    matter, so they are counted from the start of the window and never grow.
    """

    width: int
    heads: int
    window: int
    theta: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, T, D] -> [B, T, D]."""
        shape = (*x.shape[:2], self.heads, self.width // self.heads)
        query, key, value = (
            Linear(self.width, self.dtype, name=name)(x).reshape(shape).swapaxes(1, 2)
            for name in ("query", "key", "value")
        )
        key, value, past, seen = self._with_past(key, value)
        query, key = rotate(query, past, self.theta), rotate(key, 0, self.theta)
        there = np.arange(key.shape[2])
        back = past + np.arange(x.shape[1])[:, None] - there
        allowed = (back >= 0) & (back < self.window) & (there >= past - seen)
        exact = precision(self.dtype)
        scores = jnp.einsum("bhtd,bhsd->bhts", query, key, precision=exact).astype(jnp.float32)
        scores = jnp.where(allowed, scores / math.sqrt(shape[-1]), -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        mixed = jnp.einsum("bhts,bhsd->bhtd", weights, value, precision=exact)
        return Linear(self.width, self.dtype, name="out")(mixed.swapaxes(1, 2).reshape(x.shape))

    def _with_past(self, key: jax.Array, value: jax.Array):
        """-> (keys, values behind those of the stream, how many those are, how many are real)."""
        if not is_streaming(self):
            return key, value, 0, 0
        past = self.window - 1
        if self.has_variable(STREAM, "past"):
            keys, values, seen = self.get_variable(STREAM, "past")
        else:
            keys = values = jnp.zeros((*key.shape[:2], past, key.shape[3]), key.dtype)
            seen = jnp.zeros((), jnp.int32)
        keys = jnp.concatenate([keys, key], axis=2)
        values = jnp.concatenate([values, value], axis=2)
        kept = keys.shape[2] - past
        after = jnp.minimum(seen + key.shape[2], past)
        self.put_variable(STREAM, "past", (keys[:, :, kept:], values[:, :, kept:], after))
        return keys, values, past, seen


class Layer(nn.Module):
    """x + scale attention(norm x), then x + scale mlp(norm x); the scales are learnt."""

    width: int
    heads: int
    hidden: int
    window: int
    theta: float
    scale: float  # the scales' start
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, T, D] -> [B, T, D]."""

        def norm(name: str):
            return nn.LayerNorm(EPSILON, dtype=self.dtype, name=name)

        def scaled(y: jax.Array, name: str) -> jax.Array:
            start = nn.initializers.constant(self.scale)
            return y * self.param(name, start, (self.width,), jnp.float32).astype(y.dtype)

        attention = Attention(
            self.width, self.heads, self.window, self.theta, self.dtype, name="attention"
        )
        x = x + scaled(attention(norm("attention_norm")(x)), "attention_scale")
        y = Linear(self.hidden, self.dtype, name="up")(norm("mlp_norm")(x))
        y = Linear(self.width, self.dtype, name="down")(nn.gelu(y, approximate=False))
        return x + scaled(y, "mlp_scale")


class CausalTransformer(nn.Module):
    """`layers` Layers, without a norm after the last. Causal, so padding at the end is nothing."""

    layers: int
    width: int
    heads: int
    hidden: int
    window: int
    theta: float = 10_000.0
    scale: float = 0.01
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, T, D] -> [B, T, D]."""
        for index in range(self.layers):
            x = Layer(
                self.width,
                self.heads,
                self.hidden,
                self.window,
                self.theta,
                self.scale,
                self.dtype,
                name=f"layer_{index}",
            )(x)
        return x
