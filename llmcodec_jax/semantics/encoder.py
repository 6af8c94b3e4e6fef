"""HuBERT and wav2vec 2.0: speech encoders whose layers know what is being said.

Seven strided convolutions turn 16 kHz audio into 50 frames a second; a transformer with a
convolutional position embedding turns those into contextual features (Baevski et al. 2020,
arXiv 2006.11477; Hsu et al. 2021, arXiv 2106.07447). Inference only: they serve as rivals whose
units a token LM is measured on, and as teachers of a codec's first level.

Shapes: B clips, N samples, T frames, C channels of the convolutions, D width, L layers.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def standardise(wav: jax.Array, wav_length: jax.Array) -> jax.Array:
    """Zero mean and unit variance over each clip's own samples; zero past its end. [B, N]."""
    valid = jnp.arange(wav.shape[1]) < wav_length[:, None]
    count = jnp.maximum(wav_length, 1)[:, None]
    mean = jnp.sum(jnp.where(valid, wav, 0.0), axis=1, keepdims=True) / count
    centred = jnp.where(valid, wav - mean, 0.0)
    variance = jnp.sum(jnp.square(centred), axis=1, keepdims=True) / count
    return centred * jax.lax.rsqrt(variance + 1e-7)


class ConvLayer(nn.Module):
    """One strided convolution without padding, its norm and GELU: [B, T, C] -> [B, T', C']."""

    features: int
    kernel: int
    stride: int
    bias: bool
    norm: str  # "group" (each channel over the clip's time), "layer" or "none"
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`length` int32 [B]: valid steps. Valid outputs depend on valid inputs alone."""
        steps = (x.shape[1] - self.kernel) // self.stride + 1
        shape = (self.kernel, x.shape[2], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal((0, 1)), shape).astype(self.dtype)
        x = x.astype(self.dtype)
        if x.shape[2] == 1:  # as a product: CPUs are slow at convolutions of one channel
            index = np.arange(steps)[:, None] * self.stride + np.arange(self.kernel)
            y = x[:, :, 0][:, index] @ kernel[:, 0]
        else:
            y = jax.lax.conv_general_dilated(
                x, kernel, (self.stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
            )
        if self.bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        length = jnp.maximum((length - self.kernel) // self.stride + 1, 0)
        if self.norm == "layer":
            y = nn.LayerNorm(epsilon=1e-5, name="norm")(y.astype(jnp.float32))
        elif self.norm == "group":
            y = ChannelNorm(name="norm")(y.astype(jnp.float32), length)
        return nn.gelu(y.astype(self.dtype), approximate=False), length


class ChannelNorm(nn.Module):
    """Normalises every channel over a clip's own valid steps (a group norm of one channel each).

    The published code counts padded steps too, so that its features depend on a clip's company.
    """

    @nn.compact
    def __call__(self, x: jax.Array, length: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[2],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[2],))
        valid = (jnp.arange(x.shape[1]) < length[:, None])[..., None]
        count = jnp.maximum(length, 1)[:, None, None]
        mean = jnp.sum(jnp.where(valid, x, 0.0), axis=1, keepdims=True) / count
        centred = x - mean
        squares = jnp.where(valid, jnp.square(centred), 0.0)
        variance = jnp.sum(squares, axis=1, keepdims=True) / count
        return centred * jax.lax.rsqrt(variance + 1e-5) * scale + bias


class PositionEmbedding(nn.Module):
    """A wide grouped convolution whose output tells each frame where it is, [B, T, D]."""

    kernel: int
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[2]
        shape = (self.kernel, width // self.groups, width)
        direction = self.param("direction", nn.initializers.he_normal((0, 1)), shape)
        size = jnp.sqrt(jnp.sum(jnp.square(direction), axis=(1, 2)))
        scale = self.param("scale", lambda _: size)  # weight norm with one gain per tap
        bias = self.param("bias", nn.initializers.zeros, (width,))
        kernel = direction * (scale / size)[:, None, None]
        half = self.kernel // 2
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (1,),
            [(half, half - 1 + self.kernel % 2)],
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=self.groups,
        )
        return nn.gelu(y + bias.astype(self.dtype), approximate=False)


class Layer(nn.Module):
    """One transformer layer, its norms before (large) or after (base) each half."""

    heads: int
    ffn_width: int
    norm_first: bool
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x [B, T, D], mask bool [B, 1, 1, T] of visible keys -> (x, its input, for collecting)."""
        before, width = x, x.shape[2]

        def dense(name: str, features: int) -> nn.Dense:
            return nn.Dense(features, dtype=self.dtype, name=name)

        def norm(name: str, y: jax.Array) -> jax.Array:
            return nn.LayerNorm(epsilon=self.epsilon, name=name)(y.astype(jnp.float32))

        def attention(y: jax.Array) -> jax.Array:
            split = (*y.shape[:2], self.heads, width // self.heads)
            query, key, value = (dense(n, width)(y).reshape(split) for n in ("q", "k", "v"))
            mixed = jax.nn.dot_product_attention(query, key, value, mask=mask)
            return dense("out", width)(mixed.reshape(y.shape))

        def feed_forward(y: jax.Array) -> jax.Array:
            return dense("down", width)(nn.gelu(dense("up", self.ffn_width)(y), approximate=False))

        if self.norm_first:
            x = x + attention(norm("attention_norm", x))
            return x + feed_forward(norm("final_norm", x)), before
        x = norm("attention_norm", x + attention(x))
        return norm("final_norm", x + feed_forward(x)), before


class SpeechEncoder(nn.Module):
    """HuBERT or wav2vec 2.0 at any size; the defaults are the base models' 94 M parameters."""

    family: str = "hubert"  # "hubert" or "wav2vec2": what the published names begin with
    sample_rate: int = 16_000  # Hz
    conv_channels: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    conv_norm: str = "group"  # "group": after the first convolution alone; "layer": after each
    projection_norm: bool = True
    width: int = 768
    layers: int = 12
    heads: int = 12
    ffn_width: int = 3072
    position_kernel: int = 128
    position_groups: int = 16
    norm_first: bool = False  # the large models' order
    epsilon: float = 1e-5
    standardise: bool = True  # clips are brought to zero mean and unit variance first
    dtype: Any = "float32"  # of products and convolutions; norms and softmax stay float32

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return int(np.prod(self.conv_strides))

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop

    def frames(self, samples):
        """How many frames so many samples give (an int, or an array of them)."""
        for kernel, stride in zip(self.conv_kernels, self.conv_strides, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

    @nn.compact
    def __call__(self, wav: jax.Array, wav_length: jax.Array | None = None):
        """wav float [B, N], wav_length int32 [B] (None: all N) -> (features, frames).

        features float32 [L + 1, B, T, D] as Hugging Face orders `hidden_states`: the layers' inputs
        and the last output (normed, where norms come first). frames int32 [B]: valid ones; those
        past a clip's own are unspecified. A clip's features do not depend on its company.
        """
        dtype = jnp.dtype(self.dtype)
        if wav_length is None:
            wav_length = jnp.full(wav.shape[:1], wav.shape[1], jnp.int32)
        x = standardise(wav, wav_length) if self.standardise else wav
        x, length = x[..., None], wav_length
        sizes = zip(self.conv_channels, self.conv_kernels, self.conv_strides, strict=True)
        for index, (channels, kernel, stride) in enumerate(sizes):
            norm = self.conv_norm if self.conv_norm == "layer" or index == 0 else "none"
            conv = ConvLayer(channels, kernel, stride, self.conv_bias, norm, dtype)
            x, length = conv.copy(name=f"conv_{index}")(x, length)
        x = x.astype(jnp.float32)
        if self.projection_norm:
            x = nn.LayerNorm(epsilon=self.epsilon, name="projection_norm")(x)
        x = nn.Dense(self.width, dtype=dtype, name="projection")(x).astype(jnp.float32)
        valid = jnp.arange(x.shape[1]) < length[:, None]
        x = jnp.where(valid[..., None], x, 0.0)
        position = PositionEmbedding(self.position_kernel, self.position_groups, dtype)
        x = x + position.copy(name="position")(x).astype(jnp.float32)
        norm = nn.LayerNorm(epsilon=self.epsilon, name="norm")
        x = x if self.norm_first else norm(x)
        scanned = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.layers,
        )(self.heads, self.ffn_width, self.norm_first, self.epsilon, dtype, name="layers")
        x, inputs = scanned(x, valid[:, None, None])
        x = norm(x) if self.norm_first else x
        return jnp.concatenate([inputs, x[None]]), length
