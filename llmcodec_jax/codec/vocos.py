"""The Vocos decoder: ConvNeXt blocks at frame rate, then an inverse STFT (arXiv 2306.00814).

Every operation that looks past its own frame (convolutions, group norms, attention, the overlap
of the inverse transform) takes the frame mask, so a clip sounds the same whatever it is padded
with. Parameters keep one name per layer (`block_0`, `block_1`, ...).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llmcodec_jax.codec import layout
from llmcodec_jax.codec.auv.conformer import depthwise
from llmcodec_jax.codec.auv.stft import ISTFTHead, precision, published_window
from llmcodec_jax.codec.conv.family import count, size
from llmcodec_jax.codec.layout import Tensor

EPSILON = 1e-6
Path = tuple[str, ...]

GROUPS = 32  # of every group norm in the position net


def zero_invalid(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """x [B, T, C] with the frames outside mask bool [B, T] set to zero."""
    return x if mask is None else jnp.where(mask[..., None], x, 0)


class AdaptiveLayerNorm(nn.Module):
    """LayerNorm whose scale and shift are rows of a table, chosen by `condition`: [B, T, C]."""

    conditions: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, condition: int) -> jax.Array:
        shape = (self.conditions, x.shape[-1])
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        shift = self.param("shift", nn.initializers.zeros, shape, jnp.float32)
        norm = nn.LayerNorm(
            epsilon=EPSILON, use_bias=False, use_scale=False, use_fast_variance=False
        )
        return (norm(x) * scale[condition] + shift[condition]).astype(self.dtype)


def _norm(name: str, conditions: int | None, dtype: Any):
    """The layer norm of a block: conditioned where the model has conditions, else plain."""
    if conditions is not None:
        return AdaptiveLayerNorm(conditions, dtype, name=name)
    plain = nn.LayerNorm(epsilon=EPSILON, dtype=dtype, use_fast_variance=False, name=name)
    return lambda x, condition: plain(x)


class GroupNorm(nn.Module):
    """Group norm over the channels of a group and the valid frames of a clip: [B, T, C]."""

    groups: int = GROUPS

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        batch, frames, width = x.shape
        scale = self.param("scale", nn.initializers.ones, (width,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (width,), jnp.float32)
        grouped = x.astype(jnp.float32).reshape(batch, frames, self.groups, -1)
        valid = jnp.ones((1, frames), bool) if mask is None else mask
        weight = valid[:, :, None, None]
        count = jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1) * grouped.shape[-1]
        mean = jnp.sum(grouped * weight, axis=(1, 3), keepdims=True) / count
        spread = jnp.sum(jnp.square(grouped - mean) * weight, axis=(1, 3), keepdims=True) / count
        normal = (grouped - mean) * jax.lax.rsqrt(spread + EPSILON)
        return normal.reshape(x.shape) * scale + bias


def _conv(features: int, kernel: int, name: str, dtype: Any) -> nn.Conv:
    """A "same" convolution with zeros beyond the ends."""
    start = nn.initializers.truncated_normal(0.02)
    return nn.Conv(
        features, (kernel,), dtype=dtype, precision=precision(dtype), kernel_init=start, name=name
    )


def _dense(features: int, name: str, dtype: Any) -> nn.Dense:
    start = nn.initializers.truncated_normal(0.02)
    return nn.Dense(features, dtype=dtype, precision=precision(dtype), kernel_init=start, name=name)


class ConvNeXtBlock(nn.Module):
    """x + gamma * (depthwise 7, norm, width -> hidden, GELU, hidden -> width): [B, T, C]."""

    hidden: int
    scale: float  # gamma at the start
    conditions: int | None
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, condition: int) -> jax.Array:
        width = x.shape[-1]
        start = nn.initializers.truncated_normal(0.02)
        taps = self.param("depthwise", start, (7, width), jnp.float32)
        bias = self.param("depthwise_bias", nn.initializers.zeros, (width,), jnp.float32)
        gamma = self.param("gamma", nn.initializers.constant(self.scale), (width,), jnp.float32)
        inner = zero_invalid(x, mask).astype(self.dtype)
        inner = depthwise(inner, taps.astype(self.dtype)) + bias.astype(self.dtype)
        inner = _norm("norm", self.conditions, self.dtype)(inner, condition)
        inner = nn.gelu(_dense(self.hidden, "up", self.dtype)(inner), approximate=False)
        return x + gamma * _dense(width, "down", self.dtype)(inner)


class ResidualBlock(nn.Module):
    """x + (norm, swish, convolution 3), twice: [B, T, C]."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        inner = x
        for i in (1, 2):
            inner = nn.silu(GroupNorm(name=f"norm{i}")(inner, mask))
            inner = _conv(x.shape[-1], 3, f"conv{i}", self.dtype)(zero_invalid(inner, mask))
        return x + inner


class AttentionBlock(nn.Module):
    """x + single-head self-attention over the valid frames, no positions: [B, T, C]."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        width, exact = x.shape[-1], precision(self.dtype)
        normal = GroupNorm(name="norm")(x, mask)
        query, key, value = (
            _dense(width, n, self.dtype)(normal) for n in ("query", "key", "value")
        )
        scores = jnp.einsum("bqc,bkc->bqk", query, key, precision=exact)
        scores = scores.astype(jnp.float32) * width**-0.5
        if mask is not None:
            scores = jnp.where(mask[:, None, :], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        mixed = jnp.einsum("bqk,bkc->bqc", weights, value, precision=exact)
        return x + _dense(width, "out", self.dtype)(mixed)


class PositionNet(nn.Module):
    """Two residual blocks, attention, two residual blocks, a norm (WavTokenizer, 2408.16532)."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        for i in range(5):
            block = AttentionBlock if i == 2 else ResidualBlock
            x = block(self.dtype, name=f"block_{i}")(x, mask)
        return GroupNorm(name="norm")(x, mask)


class VocosDecoder(nn.Module):
    """features [B, T, D], frame mask bool [B, T] or None -> audio float32 [B, T * hop].

    `conditions`: rows of the adaptive norms (None: plain norms); `condition` picks one.
    `position_net`: attention and residual blocks before the ConvNeXt stack, as WavTokenizer has.
    The transform is four hops long ("same" padding in the published code).
    """

    hop: int
    width: int = 768
    hidden: int = 2304
    layers: int = 12
    conditions: int | None = None
    position_net: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features, mask=None, condition: int = 0) -> jax.Array:
        x = _conv(self.width, 7, "embed", self.dtype)(zero_invalid(features, mask))
        x = x.astype(jnp.float32)
        if self.position_net:
            x = PositionNet(self.dtype, name="position_net")(x, mask)
        x = _norm("norm", self.conditions, jnp.float32)(x, condition)
        for i in range(self.layers):
            block = ConvNeXtBlock(
                self.hidden, 1 / self.layers, self.conditions, self.dtype, name=f"block_{i}"
            )
            x = block(x, mask, condition)
        x = _norm("final_norm", None, self.dtype)(x, condition)
        return ISTFTHead(self.hop, self.dtype, name="istft_head")(x, mask)


def _norm_rows(name: str, path: Path, width: int, conditions: int | None) -> list[Tensor]:
    if conditions is None:
        return layout.affine(name, path, width)
    return [
        Tensor(f"{name}.{part}.weight", (conditions, width), (*path, part))
        for part in ("scale", "shift")
    ]


def _position_net_rows(name: str, path: Path, width: int) -> list[Tensor]:
    rows = []
    for i in range(5):
        block, here = f"{name}.{i}", (*path, f"block_{i}")
        if i == 2:
            rows += layout.affine(f"{block}.norm", (*here, "norm"), width)
            parts = (("q", "query"), ("k", "key"), ("v", "value"), ("proj_out", "out"))
            for published, ours in parts:
                there, end = f"{block}.{published}", (*here, ours)
                rows += [
                    Tensor(f"{there}.weight", (width, width, 1), (*end, "kernel"), "pointwise"),
                    Tensor(f"{there}.bias", (width,), (*end, "bias")),
                ]
            continue
        for half in ("1", "2"):
            rows += layout.affine(f"{block}.norm{half}", (*here, f"norm{half}"), width)
            rows += layout.conv(f"{block}.conv{half}", (*here, f"conv{half}"), width, width, 3)
    return rows + layout.affine(f"{name}.5", (*path, "norm"), width)


def tensor_table(decoder: VocosDecoder, features: int, path: Path) -> list[Tensor]:
    """Rows in the published names of a decoder of [B, T, features], its parameters below `path`."""
    width, conditions, n_fft = decoder.width, decoder.conditions, 4 * decoder.hop
    rows = layout.conv("backbone.embed", (*path, "embed"), width, features, 7)
    rows += _norm_rows("backbone.norm", (*path, "norm"), width, conditions)
    for i in range(decoder.layers):
        block, here = f"backbone.convnext.{i}", (*path, f"block_{i}")
        rows += [
            Tensor(f"{block}.gamma", (width,), (*here, "gamma")),
            Tensor(f"{block}.dwconv.weight", (width, 1, 7), (*here, "depthwise"), "depthwise"),
            Tensor(f"{block}.dwconv.bias", (width,), (*here, "depthwise_bias")),
            *_norm_rows(f"{block}.norm", (*here, "norm"), width, conditions),
            *layout.linear(f"{block}.pwconv1", (*here, "up"), decoder.hidden, width),
            *layout.linear(f"{block}.pwconv2", (*here, "down"), width, decoder.hidden),
        ]
    rows += layout.affine("backbone.final_layer_norm", (*path, "final_norm"), width)
    if decoder.position_net:
        rows += _position_net_rows("backbone.pos_net", (*path, "position_net"), width)
    rows += layout.linear("head.out", (*path, "istft_head", "projection"), n_fft + 2, width)
    window = functools.partial(published_window, n_fft)
    return [*rows, Tensor("head.istft.window", (n_fft,), (), constant=window)]


def infer_fields(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Sizes of a conditioned decoder in the published names, as fields of a codec."""
    return dict(
        decoder_width=size(shapes, "backbone.embed.weight", 0),
        decoder_hidden=size(shapes, "backbone.convnext.0.pwconv1.weight", 0),
        decoder_layers=count(shapes, "backbone.convnext.{}.gamma"),
        conditions=size(shapes, "backbone.norm.scale.weight", 0),
    )
