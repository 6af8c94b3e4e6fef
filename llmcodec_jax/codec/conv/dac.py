"""DAC: the Descript Audio Codec (Kumar et al. 2023, arXiv 2306.06546).

Encoder: a convolution; for each stride three dilated residual units, a Snake and a strided
convolution that doubles the channels; a Snake and a last convolution. Factorised codebooks
searched by cosine. The decoder mirrors the encoder and ends in tanh.

Published twice, by its authors with weight norm (`encoder.block.0.weight_g`) and by transformers
without (`encoder.conv1.weight`): both are read, and each is written back as it was read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax.codec import layout
from llmcodec_jax.codec.conv import rows
from llmcodec_jax.codec.conv.family import ConvCodec, count, size, told
from llmcodec_jax.codec.conv.layers import Conv1d, ConvTranspose1d, Snake, mask_time
from llmcodec_jax.codec.conv.residual_vq import Quantised
from llmcodec_jax.codec.layout import Tensor
from llmcodec_jax.codec.quantizer import FactorisedCodec, ResidualQuantizer

Path = tuple[str, ...]
DILATIONS = (1, 3, 9)


class ResidualUnit(nn.Module):
    """x + conv1(snake(conv7(snake(x)))), [B, T, channels] -> the same shape."""

    channels: int
    dilation: int
    norm: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, length: jax.Array | None):
        channels = self.channels
        options: dict[str, Any] = dict(norm=self.norm, dtype=self.dtype)
        y = Snake(channels, name="act_0")(x)
        wide = Conv1d(channels, channels, 7, dilation=self.dilation, name="conv_0", **options)
        y, _ = wide(y, length)
        y = Snake(channels, name="act_1")(y)
        y, _ = Conv1d(channels, channels, 1, name="conv_1", **options)(y, length)
        return x + y, length


class Encoder(nn.Module):
    """Audio [B, N, 1], length int32 [B] or None -> latent [B, N / hop, width]."""

    filters: int
    strides: tuple[int, ...]
    width: int
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, length: jax.Array | None) -> jax.Array:
        channels = self.filters
        options: dict[str, Any] = dict(norm=self.norm, dtype=self.dtype)
        x, length = Conv1d(1, channels, 7, name="first", **options)(x, length)
        for index, stride in enumerate(self.strides):
            for unit, dilation in enumerate(DILATIONS):
                name = f"unit_{index}_{unit}"
                x, length = ResidualUnit(channels, dilation, name=name, **options)(x, length)
            x = Snake(channels, name=f"act_{index}")(x)
            down = Conv1d(
                channels, 2 * channels, 2 * stride, stride, name=f"down_{index}", **options
            )
            x, length = down(x, length)
            channels *= 2
        x = Snake(channels, name="act_last")(x)
        return Conv1d(channels, self.width, 3, name="last", **options)(x, length)[0]


class Decoder(nn.Module):
    """Quantised [B, T, width], length int32 [B] or None -> audio float32 [B, T * hop].

    Each odd stride is published to give one step less than it should: those last samples of a clip
    are zeros.
    """

    channels: int
    strides: tuple[int, ...]  # of the encoder
    width: int
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, length: jax.Array | None) -> jax.Array:
        samples = x.shape[1] * math.prod(self.strides)
        channels = self.channels
        options: dict[str, Any] = dict(norm=self.norm, dtype=self.dtype)
        x, length = Conv1d(self.width, channels, 7, name="first", **options)(x, length)
        for index, stride in enumerate(reversed(self.strides)):
            x = Snake(channels, name=f"act_{index}")(x)
            trim = (-(-stride // 2), -(-stride // 2))
            up = ConvTranspose1d(
                channels,
                channels // 2,
                2 * stride,
                stride,
                trim=trim,
                name=f"up_{index}",
                **options,
            )
            x, length = up(x, length)
            channels //= 2
            for unit, dilation in enumerate(DILATIONS):
                name = f"unit_{index}_{unit}"
                x, length = ResidualUnit(channels, dilation, name=name, **options)(x, length)
        x = Snake(channels, name="act_last")(x)
        x, length = Conv1d(channels, 1, 7, name="last", **options)(x, length)
        wav = jnp.tanh(mask_time(x, length)[..., 0].astype(jnp.float32))
        return jnp.pad(wav, ((0, 0), (0, samples - wav.shape[1])))


class DAC(FactorisedCodec, ConvCodec):
    """The published codec at any size; satisfies `types.Codec`. The defaults are 44.1 kHz's."""

    sample_rate: int = 44_100  # Hz
    strides: tuple[int, ...] = (2, 4, 8, 8)  # in the encoder's order; the hop is their product
    filters: int = 64  # channels next to the audio in the encoder
    width: int = 1024  # D
    decoder_channels: int = 1536  # at frame rate; halved by each stride
    norm: str = "weight"  # of convolutions; "none" for weights published without
    codebook_size: int = 1024  # V
    code_dim: int = 8  # width of the search space
    levels: int = 9  # residual codebooks
    search_chunk: int = 4096  # codes compared at once: memory, never the result
    dtype: Any = "float32"  # of matmuls and convolutions; the search stays float32

    def setup(self):
        shared: dict[str, Any] = dict(
            strides=tuple(self.strides),
            width=self.width,
            norm=self.norm,
            dtype=jnp.dtype(self.dtype),
        )
        self.encoder = Encoder(self.filters, **shared)
        self.quantizer = ResidualQuantizer(
            self.width,
            self.codebook_size,
            self.code_dim,
            self.levels,
            self.search_chunk,
            self.norm != "weight",
        )
        self.decoder = Decoder(self.decoder_channels, **shared)

    def analyse(self, wav, length):
        """wav [B, N] -> latent [B, T, D]."""
        return self.encoder(wav[..., None], length)

    def quantise(self, latent, mask, domain, levels, train):
        """latent [B, T, D] -> Quantised."""
        latent = latent.astype(jnp.float32)
        quantised, codes, query, loss = self.quantizer(latent, mask, None, train, levels)
        return Quantised(quantised, codes[..., None] if codes.ndim == 2 else codes, query, loss)

    def synthesise(self, quantised, mask, train: bool = False):
        """quantised [B, T, D] -> wav float32 [B, T * hop]."""
        return self.decoder(quantised, None if mask is None else jnp.sum(mask, axis=1))


class _Names:
    """Where the two publications put the parts of encoder and decoder."""

    def __init__(self, codec: DAC):
        self.authors, self.last = codec.norm == "weight", len(codec.strides)

    def unit(self, block: str, unit: int, up: bool) -> str:
        if self.authors:
            return f"{block}.block.{unit + 2 if up else unit}"
        return f"{block}.res_unit{unit + 1}"

    def unit_part(self, part: int) -> str:
        """Snake, convolution, Snake, convolution."""
        return f"block.{part}" if self.authors else ("snake1", "conv1", "snake2", "conv2")[part]

    def block(self, side: str, index: int) -> str:
        if self.authors:
            return f"{side}.{'block' if side == 'encoder' else 'model'}.{index + 1}"
        return f"{side}.block.{index}"

    def act(self, block: str, up: bool) -> str:
        if self.authors:
            return f"{block}.block.{0 if up else 3}"
        return f"{block}.snake1"

    def resample(self, block: str, up: bool) -> str:
        if self.authors:
            return f"{block}.block.{1 if up else 4}"
        return f"{block}.{'conv_t1' if up else 'conv1'}"

    def end(self, side: str, part: str) -> str:
        """`part`: first, act or last."""
        if self.authors:
            stack = "block" if side == "encoder" else "model"
            return f"{side}.{stack}.{dict(first=0, act=self.last + 1, last=self.last + 2)[part]}"
        return f"{side}.{dict(first='conv1', act='snake1', last='conv2')[part]}"


def _conv(codec: DAC, name: str, path: Path, out: int, into: int, taps: int) -> list[Tensor]:
    return (rows.conv if codec.norm == "weight" else layout.conv)(name, path, out, into, taps)


def _transposed(codec: DAC, name: str, path: Path, out: int, into: int, taps: int) -> list[Tensor]:
    if codec.norm == "weight":
        return rows.transposed(name, path, out, into, taps)
    return [
        Tensor(f"{name}.weight", (into, out, taps), (*path, "kernel"), "conv_frames"),
        Tensor(f"{name}.bias", (out,), (*path, "bias")),
    ]


def _snake(name: str, path: Path, channels: int) -> Tensor:
    return Tensor(f"{name}.alpha", (1, channels, 1), (*path, "alpha"), "flat")


def _units(codec: DAC, names: _Names, block: str, path: Path, index: int, channels: int, up: bool):
    table = []
    for unit in range(len(DILATIONS)):
        there, here = names.unit(block, unit, up), (*path, f"unit_{index}_{unit}")
        parts = [f"{there}.{names.unit_part(part)}" for part in range(4)]
        table += [
            _snake(parts[0], (*here, "act_0"), channels),
            *_conv(codec, parts[1], (*here, "conv_0"), channels, channels, 7),
            _snake(parts[2], (*here, "act_1"), channels),
            *_conv(codec, parts[3], (*here, "conv_1"), channels, channels, 1),
        ]
    return table


def _side(codec: DAC, side: str) -> list[Tensor]:
    """The rows of "encoder" or "decoder"."""
    names, path, up = _Names(codec), ("params", side), side == "decoder"
    channels = codec.decoder_channels if up else codec.filters
    into, out = (codec.width, 1) if up else (1, codec.width)
    table = _conv(codec, names.end(side, "first"), (*path, "first"), channels, into, 7)
    for index, stride in enumerate(reversed(codec.strides) if up else codec.strides):
        block, after = names.block(side, index), channels // 2 if up else 2 * channels
        move = _transposed if up else _conv
        there = names.resample(block, up)
        here = (*path, f"{'up' if up else 'down'}_{index}")
        table += [
            _snake(names.act(block, up), (*path, f"act_{index}"), channels),
            *move(codec, there, here, after, channels, 2 * stride),
            *_units(codec, names, block, path, index, after if up else channels, up),
        ]
        channels = after
    table.append(_snake(names.end(side, "act"), (*path, "act_last"), channels))
    taps = 7 if up else 3
    return table + _conv(codec, names.end(side, "last"), (*path, "last"), out, channels, taps)


def _quantizer(codec: DAC) -> list[Tensor]:
    table = []
    for level in range(codec.levels):
        there, here = f"quantizer.quantizers.{level}", ("params", "quantizer", f"level_{level}")
        for name, out, into in (
            ("in_proj", codec.code_dim, codec.width),
            ("out_proj", codec.width, codec.code_dim),
        ):
            for row in _conv(codec, f"{there}.{name}", (*here, name), out, into, 1):
                kind = "pointwise" if row.kind == "conv" else row.kind
                table.append(Tensor(row.name, row.shape, row.path, kind))
        shape = (codec.codebook_size, codec.code_dim)
        table.append(Tensor(f"{there}.codebook.weight", shape, (*here, "codebook")))
    return table


def tensor_table(codec: DAC) -> list[Tensor]:
    """Every tensor of the published layout: its authors' with weight norm, else transformers'."""
    return [*_side(codec, "encoder"), *_quantizer(codec), *_side(codec, "decoder")]


def recognises(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> bool:
    """Whether these tensors' names are DAC's, or transformers' for it."""
    first = (f"encoder.block.0.{rows.DIRECTION}", "encoder.conv1.weight")
    codebook = "quantizer.quantizers.0.codebook.weight" in shapes
    return codebook and any(name in shapes for name in first)


def infer_fields(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Every field that shapes tell: all but the sample rate."""
    authors = f"encoder.block.0.{rows.DIRECTION}" in shapes
    weight = rows.DIRECTION if authors else "weight"
    first, down = ("block.0", "block.{}.block.4") if authors else ("conv1", "block.{}.conv1")
    strides, index = [], int(authors)
    while f"encoder.{down.format(index)}.{weight}" in shapes:
        strides.append(max(size(shapes, f"encoder.{down.format(index)}.{weight}", 2) // 2, 1))
        index += 1
    book = "quantizer.quantizers.{}.codebook.weight"
    return dict(
        strides=tuple(strides),
        filters=size(shapes, f"encoder.{first}.{weight}", 0),
        width=size(shapes, f"quantizer.quantizers.0.in_proj.{weight}", 1),
        decoder_channels=size(shapes, f"decoder.{'model.0' if authors else 'conv1'}.{weight}", 0),
        norm="weight" if authors else "none",
        codebook_size=size(shapes, book.format(0), 0),
        code_dim=size(shapes, book.format(0), 1),
        levels=count(shapes, book),
    )


def _rate(fields: Mapping[str, Any]) -> int:
    """The published sample rates are told apart by hop and number of codebooks."""
    if math.prod(fields["strides"]) == 512:
        return 44_100
    return 24_000 if fields["levels"] == 32 else 16_000


def from_published(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[DAC, dict]:
    """Published names -> (DAC, {"params", "batch_stats"} of numpy arrays), bits kept.

    `config`: transformers' config.json, or fields of DAC; without either the sample rate is the
    release's that has this hop and number of codebooks. Raises LayoutError.
    """
    tensors = layout.modern_names(tensors)
    fields: dict[str, Any] = infer_fields(layout.shapes_of(tensors))
    fields = {**fields, "sample_rate": _rate(fields), **told(DAC, config)}
    if "sampling_rate" in config:
        fields["sample_rate"] = config["sampling_rate"]
    codec = DAC(**fields)
    variables = layout.to_variables(tensor_table(codec), tensors)
    share = np.full((codec.codebook_size,), 1 / codec.codebook_size, np.float32)
    usage = {f"level_{level}": {"usage": share.copy()} for level in range(codec.levels)}
    return codec, {**variables, "batch_stats": {"quantizer": usage}}


def to_published(codec: DAC, variables: Mapping) -> dict[str, np.ndarray]:
    """{"params", "batch_stats"} -> published names; a pure copy."""
    return layout.older_names(layout.to_state_dict(tensor_table(codec), variables))
