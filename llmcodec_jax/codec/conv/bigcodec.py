"""BigCodec: a wide convolutional codec with one codebook (Xin et al. 2024, arXiv 2409.05377).

Encoder: a convolution; for each stride three dilated residual units and a strided convolution
that doubles the channels; an LSTM; a last convolution. One factorised codebook searched by
cosine. The decoder mirrors the encoder and ends in tanh. Activations are anti-aliased Snakes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax.codec import layout
from llmcodec_jax.codec.conv import rows
from llmcodec_jax.codec.conv.antialias import TAPS, AntiAliasedSnake, kaiser_sinc
from llmcodec_jax.codec.conv.family import ConvCodec, count, size, told
from llmcodec_jax.codec.conv.layers import Conv1d, ConvTranspose1d
from llmcodec_jax.codec.conv.lstm import LSTM
from llmcodec_jax.codec.conv.residual_vq import Quantised
from llmcodec_jax.codec.layout import Tensor
from llmcodec_jax.codec.quantizer import FactorisedCodec, ResidualQuantizer

Path = tuple[str, ...]


def _conv(inputs: int, features: int, kernel: int, dtype, name: str, **options) -> Conv1d:
    return Conv1d(inputs, features, kernel, norm="weight", dtype=dtype, name=name, **options)


class ResidualUnit(nn.Module):
    """x + conv1(snake(conv7(snake(x)))), [B, T, channels] -> the same shape."""

    channels: int
    dilation: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, length: jax.Array | None):
        channels, dtype = self.channels, self.dtype
        y, _ = AntiAliasedSnake(channels, name="act_0")(x, length)
        wide = _conv(channels, channels, 7, dtype, "conv_0", dilation=self.dilation)
        y, _ = wide(y, length)
        y, _ = AntiAliasedSnake(channels, name="act_1")(y, length)
        y, _ = _conv(channels, channels, 1, dtype, "conv_1")(y, length)
        return x + y, length


class Encoder(nn.Module):
    """Audio [B, N, 1], length int32 [B] or None -> latent [B, N / hop, width]."""

    filters: int
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    lstm_layers: int
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, length: jax.Array | None) -> jax.Array:
        channels, dtype = self.filters, self.dtype
        x, length = _conv(1, channels, 7, dtype, "first")(x, length)
        for index, stride in enumerate(self.strides):
            for unit, dilation in enumerate(self.dilations):
                name = f"unit_{index}_{unit}"
                x, length = ResidualUnit(channels, dilation, dtype, name=name)(x, length)
            x, length = AntiAliasedSnake(channels, name=f"act_{index}")(x, length)
            down = _conv(channels, 2 * channels, 2 * stride, dtype, f"down_{index}", stride=stride)
            x, length = down(x, length)
            channels *= 2
        x, length = LSTM(channels, self.lstm_layers, dtype=dtype, name="lstm")(x, length)
        x, length = AntiAliasedSnake(channels, name="act_last")(x, length)
        return _conv(channels, self.width, 3, dtype, "last")(x, length)[0]


class Decoder(nn.Module):
    """Quantised [B, T, width], length int32 [B] or None -> audio float32 [B, T * hop]."""

    channels: int
    strides: tuple[int, ...]  # of the encoder
    dilations: tuple[int, ...]
    lstm_layers: int
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, length: jax.Array | None) -> jax.Array:
        channels, dtype = self.channels, self.dtype
        x, length = _conv(self.width, channels, 7, dtype, "first")(x, length)
        x, length = LSTM(channels, self.lstm_layers, dtype=dtype, name="lstm")(x, length)
        for index, stride in enumerate(reversed(self.strides)):
            x, length = AntiAliasedSnake(channels, name=f"act_{index}")(x, length)
            up = ConvTranspose1d(
                channels,
                channels // 2,
                2 * stride,
                stride,
                norm="weight",
                dtype=dtype,
                name=f"up_{index}",
            )
            x, length = up(x, length)
            channels //= 2
            for unit, dilation in enumerate(self.dilations):
                name = f"unit_{index}_{unit}"
                x, length = ResidualUnit(channels, dilation, dtype, name=name)(x, length)
        x, length = AntiAliasedSnake(channels, name="act_last")(x, length)
        x, length = _conv(channels, 1, 7, dtype, "last")(x, length)
        return jnp.tanh(x[..., 0].astype(jnp.float32))


class BigCodec(FactorisedCodec, ConvCodec):
    """The published codec at any size; satisfies `types.Codec`. The defaults are the release."""

    sample_rate: int = 16_000  # Hz
    strides: tuple[int, ...] = (2, 2, 2, 5, 5)  # in the encoder's order; the hop is their product
    filters: int = 48  # channels next to the audio in the encoder
    dilations: tuple[int, ...] = (1, 3, 9)  # of the units before each stride
    lstm_layers: int = 2
    width: int = 1024  # D
    decoder_channels: int = 1536  # at frame rate; halved by each stride
    codebook_size: int = 8192  # V
    code_dim: int = 8  # width of the search space
    levels: int = 1  # residual codebooks
    search_chunk: int = 4096  # codes compared at once: memory, never the result
    dtype: Any = "float32"  # of matmuls and convolutions; the search stays float32

    def setup(self):
        shared: dict[str, Any] = dict(
            strides=tuple(self.strides),
            dilations=tuple(self.dilations),
            lstm_layers=self.lstm_layers,
            width=self.width,
            dtype=jnp.dtype(self.dtype),
        )
        self.encoder = Encoder(self.filters, **shared)
        self.quantizer = ResidualQuantizer(
            self.width, self.codebook_size, self.code_dim, self.levels, self.search_chunk
        )
        self.decoder = Decoder(self.decoder_channels, **shared)

    def analyse(self, wav, length):
        """wav [B, N] -> latent [B, T, D]."""
        return self.encoder(wav[..., None], length)

    def quantise(self, latent, mask, domain, levels, train):
        """latent [B, T, D] -> Quantised."""
        quantised, codes, query, loss = self.quantizer(latent, mask, None, train, levels)
        codes = codes[..., None] if self.levels == 1 else codes
        return Quantised(quantised, codes, query, loss)

    def synthesise(self, quantised, mask, train: bool = False):
        """quantised [B, T, D] -> wav [B, T * hop]."""
        return self.decoder(quantised, None if mask is None else jnp.sum(mask, axis=1))


def _filter() -> np.ndarray:
    """The published filters' form of ours, [1, 1, TAPS]."""
    return kaiser_sinc()[None, None]


def _activation_rows(name: str, path: Path, channels: int) -> list[Tensor]:
    return [
        Tensor(f"{name}.act.alpha", (channels,), (*path, "alpha")),
        Tensor(f"{name}.act.beta", (channels,), (*path, "beta")),
        Tensor(f"{name}.upsample.filter", (1, 1, TAPS), (), constant=_filter),
        Tensor(f"{name}.downsample.lowpass.filter", (1, 1, TAPS), (), constant=_filter),
    ]


def _unit_rows(name: str, path: Path, channels: int) -> list[Tensor]:
    return [
        *_activation_rows(f"{name}.block.0", (*path, "act_0"), channels),
        *rows.conv(f"{name}.block.1", (*path, "conv_0"), channels, channels, 7),
        *_activation_rows(f"{name}.block.2", (*path, "act_1"), channels),
        *rows.conv(f"{name}.block.3", (*path, "conv_1"), channels, channels, 1),
    ]


def _encoder_rows(codec: BigCodec, name: str, path: Path) -> list[Tensor]:
    channels, count = codec.filters, len(codec.strides)
    table = rows.conv(f"{name}.0", (*path, "first"), channels, 1, 7)
    for i, stride in enumerate(codec.strides):
        block = f"{name}.{i + 1}.block"
        for unit in range(len(codec.dilations)):
            table += _unit_rows(f"{block}.{unit}", (*path, f"unit_{i}_{unit}"), channels)
        after = len(codec.dilations)
        table += _activation_rows(f"{block}.{after}", (*path, f"act_{i}"), channels)
        down = f"{block}.{after + 1}"
        table += rows.conv(down, (*path, f"down_{i}"), 2 * channels, channels, 2 * stride)
        channels *= 2
    return [
        *table,
        *rows.lstm(f"{name}.{count + 1}.lstm", (*path, "lstm"), channels, codec.lstm_layers),
        *_activation_rows(f"{name}.{count + 2}", (*path, "act_last"), channels),
        *rows.conv(f"{name}.{count + 3}", (*path, "last"), codec.width, channels, 3),
    ]


def _decoder_rows(codec: BigCodec, name: str, path: Path) -> list[Tensor]:
    channels, count = codec.decoder_channels, len(codec.strides)
    table = rows.conv(f"{name}.0", (*path, "first"), channels, codec.width, 7)
    table += rows.lstm(f"{name}.1.lstm", (*path, "lstm"), channels, codec.lstm_layers)
    for i, stride in enumerate(reversed(codec.strides)):
        block, half = f"{name}.{i + 2}.block", channels // 2
        table += _activation_rows(f"{block}.0", (*path, f"act_{i}"), channels)
        up = (f"{block}.1", (*path, f"up_{i}"), half, channels, 2 * stride)
        table += rows.transposed(*up)
        for unit in range(len(codec.dilations)):
            table += _unit_rows(f"{block}.{unit + 2}", (*path, f"unit_{i}_{unit}"), half)
        channels = half
    return [
        *table,
        *_activation_rows(f"{name}.{count + 2}", (*path, "act_last"), channels),
        *rows.conv(f"{name}.{count + 3}", (*path, "last"), 1, channels, 7),
    ]


def _quantizer_rows(codec: BigCodec, name: str, path: Path) -> list[Tensor]:
    table = []
    for level in range(codec.levels):
        here, there = (*path, f"level_{level}"), f"{name}.layers.{level}"
        inner, outer = codec.code_dim, codec.width
        for side, out, into in (("in_proj", inner, outer), ("out_proj", outer, inner)):
            weight, end = f"{there}.{side}", (*here, side)
            table += [
                Tensor(f"{weight}.bias", (out,), (*end, "bias")),
                Tensor(f"{weight}.{rows.GAIN}", (out, 1), (*end, "scale"), "flat"),
                Tensor(f"{weight}.{rows.DIRECTION}", (out, into), (*end, "direction"), "linear"),
            ]
        shape = (codec.codebook_size, codec.code_dim)
        table.append(Tensor(f"{there}._codebook.weight", shape, (*here, "codebook")))
    return table


def tensor_table(codec: BigCodec) -> list[Tensor]:
    """Every tensor of the published layout for this architecture."""
    return [
        *_encoder_rows(codec, "encoder.block", ("params", "encoder")),
        *_quantizer_rows(codec, "decoder.quantizer", ("params", "quantizer")),
        *_decoder_rows(codec, "decoder.model", ("params", "decoder")),
    ]


def recognises(shapes: Mapping[str, Path], config: Mapping[str, Any]) -> bool:
    """Whether these tensors' names are BigCodec's: as released, or as the PyPI package has them."""
    names = {_package_name(name) for name in shapes}
    return {"encoder.block.0.bias", "decoder.quantizer.layers.0._codebook.weight"} <= names


def _package_name(name: str) -> str:
    """The release keeps two state dicts, `CodecEnc` and `generator`, in one file."""
    for part, ours in (("CodecEnc.", "encoder."), ("generator.", "decoder.")):
        if name.startswith(part):
            return ours + name.removeprefix(part)
    return name


def infer_fields(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Every size that shapes tell; the dilations are taken to be powers of three."""
    strides, unit = [], "block.{}.block.0.act.alpha"
    units = count(shapes, f"encoder.block.1.{unit}")
    down = f"encoder.block.{{}}.block.{units + 1}.{rows.DIRECTION}"
    while (name := down.format(len(strides) + 1)) in shapes:
        strides.append(max(size(shapes, name, 2) // 2, 1))
    after = f"encoder.block.{len(strides) + 1}"
    codebook = "decoder.quantizer.layers.{}._codebook.weight"
    return dict(
        strides=tuple(strides),
        filters=size(shapes, "encoder.block.0.bias", 0),
        dilations=tuple(3**i for i in range(units)),
        lstm_layers=count(shapes, after + ".lstm.weight_ih_l{}"),
        width=size(shapes, f"encoder.block.{len(strides) + 3}.bias", 0),
        decoder_channels=size(shapes, "decoder.model.0.bias", 0),
        codebook_size=size(shapes, codebook.format(0), 0),
        code_dim=size(shapes, codebook.format(0), 1),
        levels=count(shapes, codebook),
    )


def from_published(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[BigCodec, dict]:
    """Published names -> (BigCodec, {"params", "batch_stats"} of numpy arrays), every bit kept.

    Discriminators in the same file are left out. Raises LayoutError.
    """
    tensors = {_package_name(name): x for name, x in layout.modern_names(tensors).items()}
    tensors = {name: x for name, x in tensors.items() if name.startswith(("encoder.", "decoder."))}
    fields = infer_fields(layout.shapes_of(tensors))
    codec = BigCodec(**{**fields, **told(BigCodec, config, ("dilations",))})
    variables = layout.to_variables(tensor_table(codec), tensors)
    uniform = np.full((codec.codebook_size,), 1 / codec.codebook_size, np.float32)
    usage = {f"level_{level}": {"usage": uniform} for level in range(codec.levels)}
    return codec, {**variables, "batch_stats": {"quantizer": usage}}


def to_published(codec: BigCodec, variables: Mapping) -> dict[str, np.ndarray]:
    """{"params", ...} -> the names of the PyPI package; a pure copy."""
    return layout.to_state_dict(tensor_table(codec), variables)
