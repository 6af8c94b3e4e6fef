"""The Conformer stack of encoder and decoder (method.md 1).

One layer: half a feed-forward, attention, convolution, half a feed-forward, a norm. The residual
stream is float32; the branches compute in `dtype`. Layers are scanned: every parameter carries a
leading layer axis [L, ...].
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax.codec.auv.stft import precision
from llmcodec_jax.ops.remat import recomputing

ROTARY_BASE = 10_000.0
EPSILON = 1e-5
MOMENTUM = 0.1  # weight of the newest batch in BatchNorm's running statistics


def rotary_table(frames: int, head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of the rotary angles, float32 [frames, head_dim // 2]."""
    rate = ROTARY_BASE ** (-np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    angle = np.arange(frames, dtype=np.float32)[:, None] * rate.astype(np.float32)
    return np.cos(angle), np.sin(angle)


def rotate(x: jax.Array, cosine, sine) -> jax.Array:
    """Rotary positions, halves convention: x [B, T, heads, head_dim], tables [T, head_dim // 2]."""
    first, second = jnp.split(x, 2, axis=-1)
    cosine, sine = (jnp.asarray(t, x.dtype)[:, None, :] for t in (cosine, sine))
    return jnp.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )


def _shifts(x: jax.Array, taps: int) -> list[jax.Array]:
    """x [B, T, D] shifted by every tap of a "same" kernel, zeros beyond the ends."""
    half = taps // 2
    padded = jnp.pad(x, ((0, 0), (half, taps - 1 - half), (0, 0)))
    return [padded[:, k : k + x.shape[1]] for k in range(taps)]


@jax.custom_vjp
def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Depthwise "same" convolution: x [B, T, D], kernel [taps, D] with odd taps -> [B, T, D].

    A sum of shifted products fuses into one pass over the data; XLA's grouped convolution and
    the generic transpose of this sum are both many times slower on CPUs.
    """
    return sum(s * w for s, w in zip(_shifts(x, kernel.shape[0]), kernel, strict=True))


def _depthwise_forward(x, kernel):
    return depthwise(x, kernel), (x, kernel)


def _depthwise_backward(saved, g):
    x, kernel = saved
    grad_kernel = [jnp.sum(s * g, axis=(0, 1)) for s in _shifts(x, kernel.shape[0])]
    return depthwise(g, kernel[::-1]), jnp.stack(grad_kernel)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _norm(name: str, dtype: Any) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=EPSILON, dtype=dtype, use_fast_variance=False, name=name)


def _dense(features: int, name: str, dtype: Any, use_bias: bool = True) -> nn.Dense:
    return nn.Dense(features, use_bias=use_bias, dtype=dtype, precision=precision(dtype), name=name)


class FeedForward(nn.Module):
    """width -> multiple * width -> width with tanh-GELU."""

    multiple: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nn.gelu(_dense(self.multiple * x.shape[-1], "up", self.dtype)(x))
        return _dense(x.shape[-1], "down", self.dtype)(hidden)


class Attention(nn.Module):
    """Bidirectional self-attention with rotary positions: [B, T, D] -> [B, T, D]."""

    head_dim: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        batch, frames, width = x.shape
        heads = width // self.head_dim
        qkv = _dense(3 * width, "qkv", self.dtype, use_bias=False)(x)
        query, key, value = (
            part.reshape(batch, frames, heads, self.head_dim) for part in jnp.split(qkv, 3, axis=-1)
        )
        cosine, sine = rotary_table(frames, self.head_dim)
        query, key = rotate(query, cosine, sine), rotate(key, cosine, sine)
        exact = precision(self.dtype)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, precision=exact)
        scores = scores.astype(jnp.float32) * self.head_dim**-0.5
        if mask is not None:
            scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value, precision=exact)
        return _dense(width, "out", self.dtype)(mixed.reshape(batch, frames, width))


class BatchNorm(nn.Module):
    """BatchNorm over valid frames; `train` decides between the batch's statistics and the stored.

    Fine-tuning keeps `train=False`: pretrained statistics must not drift (method.md 1).
    """

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        width = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, width, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, width, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, width, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, width, jnp.float32)
        steps = self.variable("batch_stats", "steps", jnp.zeros, (), jnp.int32)
        centre, spread = mean.value, var.value
        if train:
            wide = x.astype(jnp.float32)
            weight = jnp.ones((*x.shape[:2], 1)) if mask is None else mask[..., None]
            count = jnp.maximum(jnp.sum(weight), 1)
            centre = jnp.sum(wide * weight, axis=(0, 1)) / count
            spread = jnp.sum(jnp.square(wide - centre) * weight, axis=(0, 1)) / count
            if not self.is_initializing():
                unbiased = spread * count / jnp.maximum(count - 1, 1)
                mean.value += MOMENTUM * (jax.lax.stop_gradient(centre) - mean.value)
                var.value += MOMENTUM * (jax.lax.stop_gradient(unbiased) - var.value)
                steps.value += 1
        factor = scale * jax.lax.rsqrt(spread + EPSILON)
        return x * factor.astype(x.dtype) + (bias - centre * factor).astype(x.dtype)


class Convolution(nn.Module):
    """Norm, gated pointwise, depthwise, norm, tanh-GELU, pointwise: [B, T, D] -> [B, T, D].

    Invalid frames are zeroed before the depthwise convolution and after the last pointwise.
    """

    kernel: int
    conv_norm: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        width = x.shape[-1]
        x = _norm("norm", self.dtype)(x)
        gated = _dense(2 * width, "pointwise1", self.dtype, use_bias=False)(x)
        value, gate = jnp.split(gated, 2, axis=-1)
        x = _zero_invalid(value * jax.nn.sigmoid(gate), mask)
        fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=0, out_axis=())
        taps = self.param("depthwise", fan_in, (self.kernel, width), jnp.float32)
        x = depthwise(x, taps.astype(self.dtype))
        if self.conv_norm == "batch":
            x = BatchNorm(name="conv_norm")(x, mask, train)
        else:
            x = nn.RMSNorm(epsilon=EPSILON, dtype=self.dtype, name="conv_norm")(x)
        x = _dense(width, "pointwise2", self.dtype, use_bias=False)(nn.gelu(x))
        return _zero_invalid(x, mask)


def _zero_invalid(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    return x if mask is None else jnp.where(mask[..., None], x, 0)


class ConformerLayer(nn.Module):
    """One layer, in the form `nn.scan` asks for: (x, mask) -> (x, None)."""

    head_dim: int
    ffn_multiple: int
    kernel: int
    conv_norm: str
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, None]:
        dtype = self.dtype
        x = x + 0.5 * FeedForward(self.ffn_multiple, dtype, name="ffn1")(
            _norm("ffn1_norm", dtype)(x)
        )
        x = x + Attention(self.head_dim, dtype, name="attention")(
            _norm("attention_norm", dtype)(x), mask
        )
        convolution = Convolution(self.kernel, self.conv_norm, dtype, name="convolution")
        x = x + convolution(x, mask, self.train)
        x = x + 0.5 * FeedForward(self.ffn_multiple, dtype, name="ffn2")(
            _norm("ffn2_norm", dtype)(x)
        )
        return _norm("final_norm", jnp.float32)(x), None


class Conformer(nn.Module):
    """A stack of layers and one norm: [B, T, D], mask bool [B, T] or None -> float32 [B, T, D]."""

    layers: int
    head_dim: int = 64
    ffn_multiple: int = 4
    kernel: int = 31
    conv_norm: str = "batch"  # "batch" (published) or "rms", which needs no statistics
    dtype: Any = jnp.float32
    remat: bool = False  # recompute products too in the backward pass (ops/remat.py)

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool = False) -> jax.Array:
        if x.shape[-1] % self.head_dim:
            raise ValueError(f"width {x.shape[-1]} is not a multiple of head_dim {self.head_dim}")
        stack = nn.scan(
            recomputing(ConformerLayer, self.remat),
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.layers,
            check_constancy_invariants=False,  # all is scanned or an argument: traced once less
        )(
            self.head_dim,
            self.ffn_multiple,
            self.kernel,
            self.conv_norm,
            train,
            self.dtype,
            name="layers",
        )
        x, _ = stack(x.astype(jnp.float32), mask)
        return _norm("norm", jnp.float32)(x)
