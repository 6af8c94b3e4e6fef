"""SEANet: the convolutional encoder and decoder of SoundStream, EnCodec, Mimi and their line.

Encoder: a convolution; for each stride residual blocks, an activation and a strided convolution
that doubles the channels; a recurrent layer; an activation and a last convolution. The decoder
is its mirror image (Zeghidour et al. 2021, section III; Defossez et al. 2022, section 3.1).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llmcodec_jax.codec.conv.layers import Conv1d, ConvTranspose1d, Snake, elu
from llmcodec_jax.codec.conv.lstm import LSTM


@dataclasses.dataclass(frozen=True)
class SEANetConfig:
    """Sizes and choices that the encoder and the decoder share."""

    channels: int = 1  # of the audio
    width: int = 128  # of the latent
    filters: int = 32  # channels next to the audio
    strides: tuple[int, ...] = (2, 4, 5, 8)  # in the encoder's order; the hop is their product
    kernel: int = 7
    last_kernel: int = 7
    residual_kernel: int = 3
    residual_layers: int = 1  # blocks for each stride
    dilation_growth: int = 2  # of successive blocks
    compress: int = 2  # channels of a block's inside: fewer by this factor
    shortcut: bool = True  # a 1x1 convolution around each block, else the identity
    activation: str = "elu"  # or "snake"
    norm: str = "weight"  # of convolutions: "none", "weight" or "group"
    causal: bool = True
    pad_mode: str = "reflect"
    lstm_layers: int = 2  # 0: none
    bidirectional: bool = False  # the encoder's LSTM; the decoder's looks back only
    trim_right: float = 1.0  # share of a causal transposed convolution's spare cut at the right

    @classmethod
    def of(cls, codec: Any, **others: Any) -> SEANetConfig:
        """The fields that a codec module has by the same name; `others` fill or replace."""
        names = {field.name for field in dataclasses.fields(cls)}
        own = {field.name for field in dataclasses.fields(codec)} & names
        return cls(**{**{name: getattr(codec, name) for name in own}, **others})

    @property
    def lead(self) -> int:
        """Frames from which the padded start of every layer follows, of a causal network.

        One where the padding is zeros; reflections need as many steps after the first as they
        are long, which is most at the lowest rates.
        """
        if self.pad_mode != "reflect":
            return 1
        need = max(self.kernel, self.last_kernel)  # at frame rate, in the decoder or the encoder
        for index, stride in enumerate(self.strides):
            steps = math.prod(self.strides[index:])  # of a frame, before this stride
            widest = (self.residual_kernel - 1) * self.dilation_growth ** (self.residual_layers - 1)
            need = max(need, -(-(max(widest, stride, self.kernel - 1) + 1) // steps))
        return need

    def conv(self, inputs: int, features: int, kernel: int, dtype, **options) -> Conv1d:
        """A convolution of this network; options as of Conv1d."""
        return Conv1d(
            inputs,
            features,
            kernel,
            causal=self.causal,
            norm=self.norm,
            pad_mode=self.pad_mode,
            dtype=dtype,
            **options,
        )

    def up(self, inputs: int, features: int, stride: int, dtype, name: str) -> ConvTranspose1d:
        """The decoder's transposed convolution."""
        cut = math.ceil(stride * self.trim_right)
        return ConvTranspose1d(
            inputs,
            features,
            2 * stride,
            stride,
            causal=self.causal,
            norm=self.norm,
            trim=(stride - cut, cut) if self.causal else None,
            dtype=dtype,
            name=name,
        )

    def activate(self, x: jax.Array, name: str) -> jax.Array:
        """The activation; `name` is the parameters' where it has any."""
        if self.activation == "snake":
            return Snake(x.shape[-1], name=name)(x)
        if self.activation != "elu":
            raise ValueError(f"activation {self.activation!r} is neither elu nor snake")
        return elu(x)


class ResidualBlock(nn.Module):
    """x + conv1x1(act(conv(act(x)))), [B, T, channels] -> the same shape."""

    config: SEANetConfig
    channels: int
    dilation: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, length: jax.Array | None = None):
        config, dtype = self.config, self.dtype
        inside = self.channels // config.compress
        wide = config.conv(
            self.channels,
            inside,
            config.residual_kernel,
            dtype,
            dilation=self.dilation,
            name="conv_0",
        )
        y, _ = wide(config.activate(x, "act_0"), length)
        y, _ = config.conv(inside, self.channels, 1, dtype, name="conv_1")(
            config.activate(y, "act_1"), length
        )
        if config.shortcut:
            x, _ = config.conv(self.channels, self.channels, 1, dtype, name="shortcut")(x, length)
        return x + y, length


class SEANetEncoder(nn.Module):
    """Audio [B, N, channels], length int32 [B] or None -> (latent [B, N / hop, width], length)."""

    config: SEANetConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, length: jax.Array | None = None):
        config, dtype, filters = self.config, self.dtype, self.config.filters
        first = config.conv(config.channels, filters, config.kernel, dtype, name="first")
        x, length = first(x, length)
        for index, stride in enumerate(config.strides):
            for block in range(config.residual_layers):
                dilation = config.dilation_growth**block
                name = f"residual_{index}_{block}"
                x, length = ResidualBlock(config, filters, dilation, dtype, name=name)(x, length)
            x = config.activate(x, f"act_{index}")
            down = config.conv(
                filters, 2 * filters, 2 * stride, dtype, stride=stride, name=f"down_{index}"
            )
            x, length = down(x, length)
            filters *= 2
        if config.lstm_layers:
            x, length = LSTM(
                filters, config.lstm_layers, config.bidirectional, dtype=dtype, name="lstm"
            )(x, length)
        x = config.activate(x, "act_last")
        last = config.conv(x.shape[-1], config.width, config.last_kernel, dtype, name="last")
        return last(x, length)


class SEANetDecoder(nn.Module):
    """Latent [B, T, width], length int32 [B] or None -> (audio [B, T * hop, channels], length)."""

    config: SEANetConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, length: jax.Array | None = None):
        config, dtype = self.config, self.dtype
        filters = config.filters * 2 ** len(config.strides)
        x, length = config.conv(config.width, filters, config.kernel, dtype, name="first")(
            x, length
        )
        if config.lstm_layers:
            x, length = LSTM(filters, config.lstm_layers, dtype=dtype, name="lstm")(x, length)
        for index, stride in enumerate(reversed(config.strides)):
            x = config.activate(x, f"act_{index}")
            x, length = config.up(filters, filters // 2, stride, dtype, f"up_{index}")(x, length)
            filters //= 2
            for block in range(config.residual_layers):
                dilation = config.dilation_growth**block
                name = f"residual_{index}_{block}"
                x, length = ResidualBlock(config, filters, dilation, dtype, name=name)(x, length)
        x = config.activate(x, "act_last")
        return config.conv(filters, config.channels, config.last_kernel, dtype, name="last")(
            x, length
        )
