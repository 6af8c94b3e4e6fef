"""Layout rows of the convolutional layers: which published tensor is which of our parameters.

Weight norm goes by its newer names, `parametrizations.weight.original0` and `original1`, which
`layout.modern_names` gives to files with the older `weight_g` and `weight_v`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmcodec_jax.codec.conv import family
from llmcodec_jax.codec.conv.seanet import SEANetConfig
from llmcodec_jax.codec.layout import LayoutError, Tensor

Path = tuple[str, ...]
Shapes = Mapping[str, tuple[int, ...]]
GAIN, DIRECTION = (f"parametrizations.weight.original{i}" for i in (0, 1))


def conv(name: str, path: Path, out: int, into: int, taps: int) -> list[Tensor]:
    """A weight-normed convolution with bias."""
    return [
        Tensor(f"{name}.bias", (out,), (*path, "bias")),
        Tensor(f"{name}.{GAIN}", (out, 1, 1), (*path, "scale"), "flat"),
        Tensor(f"{name}.{DIRECTION}", (out, into, taps), (*path, "direction"), "conv"),
    ]


def transposed(name: str, path: Path, out: int, into: int, taps: int) -> list[Tensor]:
    """A weight-normed transposed convolution with bias, its kernel two strides long."""
    return [
        Tensor(f"{name}.bias", (out,), (*path, "bias")),
        Tensor(f"{name}.{GAIN}", (into, 1, 1), (*path, "scale"), "flat"),
        Tensor(f"{name}.{DIRECTION}", (into, out, taps), (*path, "direction"), "conv_frames"),
    ]


def lstm(name: str, path: Path, width: int, layers: int, bidirectional: bool = False):
    """A stacked LSTM of `width` channels in and, each way, out."""
    rows = []
    for layer in range(layers):
        into = 2 * width if bidirectional and layer else width
        for back in ("", "_reverse") if bidirectional else ("",):
            here, end = (*path, f"layer_{layer}{back}"), f"l{layer}{back}"
            for ours, published, inputs in (("input", "ih", into), ("recurrent", "hh", width)):
                shape = (4 * width, inputs)
                weight = f"{name}.weight_{published}_{end}"
                rows += [
                    Tensor(weight, shape, (*here, f"{ours}_kernel"), "linear"),
                    Tensor(f"{name}.bias_{published}_{end}", shape[:1], (*here, f"{ours}_bias")),
                ]
    return rows


@dataclasses.dataclass(frozen=True)
class SEANetNames:
    """How a publication names a SEANet's parts."""

    sequence: str = "model"  # of modules, numbered from 0
    conv: str = "conv.conv"
    up: str = "convtr.convtr"
    conv_norm: str = "conv.norm"  # the group norm after each, where there is one
    up_norm: str = "convtr.norm"


ENCODEC = SEANetNames()
"""EnCodec's own repository and its line: `model.N.conv.conv.weight_g`."""
TRANSFORMERS = SEANetNames("layers", "conv", "conv", "norm", "norm")
"""Hugging Face transformers: `layers.N.conv.weight_g`."""


class SEANetRows:
    """Rows of a SEANet, by default in EnCodec's own names.

    Published modules stand in one sequence, in which activations count although only Snake has
    parameters.
    """

    def __init__(self, config: SEANetConfig, name: str, path: Path, names: SEANetNames = ENCODEC):
        self.config, self.name, self.path, self.names = config, name, path, names
        self.rows: list[Tensor] = []
        self.index = 0

    def _next(self) -> str:
        name = f"{self.name}.{self.names.sequence}.{self.index}"
        self.index += 1
        return name

    def _activation(self, name: str, path: Path, channels: int) -> None:
        if self.config.activation == "snake":
            self.rows.append(Tensor(f"{name}.alpha", (1, channels, 1), (*path, "alpha"), "flat"))

    def _rows(self, name: str, ours: Path, out: int, into: int, taps: int, up: bool = False):
        """One convolution's rows under the network's norm."""
        names, path = self.names, (*self.path, *ours)
        weight = f"{name}.{names.up if up else names.conv}"
        if self.config.norm == "weight":
            self.rows += (transposed if up else conv)(weight, path, out, into, taps)
            return
        shape, kind = ((into, out, taps), "conv_frames") if up else ((out, into, taps), "conv")
        self.rows += [
            Tensor(f"{weight}.weight", shape, (*path, "kernel"), kind),
            Tensor(f"{weight}.bias", (out,), (*path, "bias")),
        ]
        if self.config.norm == "group":
            norm = f"{name}.{names.up_norm if up else names.conv_norm}"
            self.rows += [
                Tensor(f"{norm}.weight", (out,), (*path, "norm_scale")),
                Tensor(f"{norm}.bias", (out,), (*path, "norm_bias")),
            ]

    def _conv(self, ours: str, out: int, into: int, taps: int) -> None:
        self._rows(self._next(), (ours,), out, into, taps)

    def _residual(self, ours: str, channels: int) -> None:
        config, name, path = self.config, self._next(), (*self.path, ours)
        inside = channels // config.compress
        self._activation(f"{name}.block.0", (*path, "act_0"), channels)
        wide = config.residual_kernel
        self._rows(f"{name}.block.1", (ours, "conv_0"), inside, channels, wide)
        self._activation(f"{name}.block.2", (*path, "act_1"), inside)
        self._rows(f"{name}.block.3", (ours, "conv_1"), channels, inside, 1)
        if config.shortcut:
            self._rows(f"{name}.shortcut", (ours, "shortcut"), channels, channels, 1)

    def _lstm(self, channels: int, bidirectional: bool) -> None:
        if self.config.lstm_layers:
            name = f"{self._next()}.lstm"
            path, layers = (*self.path, "lstm"), self.config.lstm_layers
            self.rows += lstm(name, path, channels, layers, bidirectional)

    def encoder(self) -> list[Tensor]:
        """Of a SEANetEncoder."""
        config, channels = self.config, self.config.filters
        self._conv("first", channels, config.channels, config.kernel)
        for i, stride in enumerate(config.strides):
            for block in range(config.residual_layers):
                self._residual(f"residual_{i}_{block}", channels)
            self._activation(self._next(), (*self.path, f"act_{i}"), channels)
            self._conv(f"down_{i}", 2 * channels, channels, 2 * stride)
            channels *= 2
        self._lstm(channels, config.bidirectional)
        channels *= 2 if config.bidirectional and config.lstm_layers else 1
        self._activation(self._next(), (*self.path, "act_last"), channels)
        self._conv("last", config.width, channels, config.last_kernel)
        return self.rows

    def decoder(self) -> list[Tensor]:
        """Of a SEANetDecoder."""
        config = self.config
        channels = config.filters * 2 ** len(config.strides)
        self._conv("first", channels, config.width, config.kernel)
        self._lstm(channels, bidirectional=False)
        for i, stride in enumerate(reversed(config.strides)):
            self._activation(self._next(), (*self.path, f"act_{i}"), channels)
            self._rows(self._next(), (f"up_{i}",), channels // 2, channels, 2 * stride, up=True)
            channels //= 2
            for block in range(config.residual_layers):
                self._residual(f"residual_{i}_{block}", channels)
        self._activation(self._next(), (*self.path, "act_last"), channels)
        self._conv("last", config.channels, channels, config.last_kernel)
        return self.rows


def inited() -> np.ndarray:
    """The published flag that a codebook has been started from data."""
    return np.ones(1, np.float32)


def euclidean(
    name: str, levels: int, codes: int, dim: int, learning: str, codebook: str = "_codebook"
) -> list[Tensor]:
    """Euclidean codebooks in EnCodec's own names, of a `ResidualEuclidean` named `quantizer`."""
    rows = []
    for level in range(levels):
        there, path = f"{name}.layers.{level}.{codebook}", ("quantizer", f"level_{level}")
        kept = ("batch_stats", *path)
        here = kept if learning == "ema" else ("params", *path)
        rows += [
            Tensor(f"{there}.inited", (1,), (), constant=inited),
            Tensor(f"{there}.cluster_size", (codes,), (*kept, "cluster_size")),
            Tensor(f"{there}.embed", (codes, dim), (*here, "codebook")),
            Tensor(f"{there}.embed_avg", (codes, dim), (*kept, "embed_sum")),
        ]
    return rows


def seanet_sizes(shapes: Shapes, name: str, names: SEANetNames = ENCODEC) -> dict[str, Any]:
    """Sizes of the SEANet encoder whose published tensors are `name`.model.N: config fields.

    Of `filters`, `strides`, `residual_layers`, `lstm_layers`, `bidirectional`, `width` and
    `activation`. Raises LayoutError where a tensor that tells a size is missing.
    """
    model = f"{name}.{names.sequence}"

    def taps(part: str) -> int | None:
        for leaf in (DIRECTION, "weight"):
            if f"{part}.{names.conv}.{leaf}" in shapes:
                return max(family.size(shapes, f"{part}.{names.conv}.{leaf}", 2), 1)
        return None

    index, strides, blocks = 1, [], 0
    while f"{model}.{index}.lstm.weight_ih_l0" not in shapes:
        wide = taps(f"{model}.{index + 1}")
        if taps(f"{model}.{index}.block.1") is not None:
            index, blocks = index + 1, blocks + 1
        elif wide is not None and wide % 2:  # the last convolution, of a net without an LSTM
            index -= 1
            break
        elif wide is not None:
            strides.append(wide // 2)
            index += 2
        else:
            raise LayoutError(f"{model}.{index} is neither a block, a convolution nor an LSTM")
    lstm = f"{model}.{index}.lstm"
    return dict(
        filters=family.size(shapes, f"{model}.0.{names.conv}.bias", 0),
        strides=tuple(strides),
        residual_layers=blocks // max(len(strides), 1),
        lstm_layers=family.count(shapes, lstm + ".weight_ih_l{}"),
        bidirectional=f"{lstm}.weight_ih_l0_reverse" in shapes,
        width=family.size(shapes, f"{model}.{index + 2}.{names.conv}.bias", 0),
        activation="snake" if f"{model}.1.block.0.alpha" in shapes else "elu",
    )
