"""Mimi: SEANet, a causal transformer on either side, split semantic and acoustic codebooks.

12.5 frames a second at 24 kHz (Defossez et al. 2024, arXiv 2410.00037, section 3.3). Its layout is
transformers' `MimiModel`, flat as `kyutai/mimi` is published: `encoder.layers.N.conv.weight`,
`encoder_transformer.layers.N...`, `downsample`, `quantizer`, `upsample`, and so back.
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
from llmcodec_jax.codec.conv.family import EuclideanCodec, count, size, told
from llmcodec_jax.codec.conv.layers import Conv1d, ConvTranspose1d
from llmcodec_jax.codec.conv.residual_vq import SplitResidual
from llmcodec_jax.codec.conv.rows import TRANSFORMERS, SEANetRows, inited, seanet_sizes
from llmcodec_jax.codec.conv.seanet import SEANetConfig, SEANetDecoder, SEANetEncoder
from llmcodec_jax.codec.conv.transformer import CausalTransformer
from llmcodec_jax.codec.layout import LayoutError, Tensor, affine, linear

SMALLEST_USAGE = 1e-5  # published floor of a code's count
CONFIG = {
    "sampling_rate": "sample_rate",
    "kernel_size": "kernel",
    "last_kernel_size": "last_kernel",
    "residual_kernel_size": "residual_kernel",
    "dilation_growth_rate": "dilation_growth",
    "compress": "compress",
    "num_attention_heads": "heads",
    "sliding_window": "window",
    "num_semantic_quantizers": "semantic",
    "rope_theta": "rope_theta",
}
"""transformers' config.json -> fields."""


class Encoder(nn.Module):
    """Audio [B, N, 1], length int32 [B] or None -> latent [B, T, D]."""

    seanet: SEANetConfig
    transformer: Mapping[str, Any]
    stride: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, length: jax.Array | None = None) -> jax.Array:
        width, dtype = self.seanet.width, self.dtype
        x, length = SEANetEncoder(self.seanet, dtype, name="seanet")(x, length)
        x = CausalTransformer(**self.transformer, dtype=dtype, name="transformer")(x)
        down = Conv1d(
            width,
            width,
            2 * self.stride,
            self.stride,
            causal=True,
            bias=False,
            pad_mode="replicate",
            dtype=dtype,
            name="down",
        )
        return down(x, length)[0]


class Decoder(nn.Module):
    """Quantised [B, T, D] -> audio [B, T * hop, 1]."""

    seanet: SEANetConfig
    transformer: Mapping[str, Any]
    stride: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, dtype = self.seanet.width, self.dtype
        up = ConvTranspose1d(
            width,
            width,
            2 * self.stride,
            self.stride,
            groups=width,
            causal=True,
            bias=False,
            dtype=dtype,
            name="up",
        )
        x, _ = up(x)
        x = CausalTransformer(**self.transformer, dtype=dtype, name="transformer")(x)
        return SEANetDecoder(self.seanet, dtype, name="seanet")(x)[0]


class Mimi(EuclideanCodec):
    """The published codec at any size; satisfies `types.Codec`. The defaults are the release."""

    sample_rate: int = 24_000  # Hz
    strides: tuple[int, ...] = (4, 5, 6, 8)  # in the encoder's order
    frame_stride: int = 2  # after the transformer; the hop is the product of all
    filters: int = 64  # channels next to the audio
    width: int = 512  # D
    kernel: int = 7
    last_kernel: int = 3
    residual_kernel: int = 3
    residual_layers: int = 1  # blocks for each stride
    dilation_growth: int = 2
    compress: int = 2
    transformer_layers: int = 8  # on either side
    heads: int = 8
    hidden: int = 2048  # of the transformers' feed-forward layers
    window: int = 250  # steps that attention reads, at the transformer's rate
    rope_theta: float = 10_000.0
    layer_scale: float = 0.01  # start of the scales on residual branches
    codebook_size: int = 2048  # V
    code_dim: int = 256  # d
    levels: int = 32  # of which the release's speech model uses 8
    semantic: int = 1  # levels with a residual of their own, the first
    learning: str = "ema"  # of the codebooks, as published; or "gradient"
    dtype: Any = "float32"  # of matmuls and convolutions; the search stays float32

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.strides) * self.frame_stride

    @property
    def seanet(self) -> SEANetConfig:
        """The sizes of the convolutional encoder and decoder."""
        return SEANetConfig.of(self, shortcut=False, norm="none", pad_mode="zero", lstm_layers=0)

    @property
    def stream_lead(self) -> int:
        """Frames that the first call of a stream must see."""
        return self.seanet.lead

    def setup(self):
        dtype = jnp.dtype(self.dtype)
        transformer = dict(
            layers=self.transformer_layers,
            width=self.width,
            heads=self.heads,
            hidden=self.hidden,
            window=self.window,
            theta=self.rope_theta,
            scale=self.layer_scale,
        )
        self.encoder = Encoder(self.seanet, transformer, self.frame_stride, dtype)
        self.quantizer = SplitResidual(
            self.width,
            self.codebook_size,
            self.code_dim,
            self.levels,
            self.semantic,
            self.learning,
        )
        self.decoder = Decoder(self.seanet, transformer, self.frame_stride, dtype)

    def analyse(self, wav, length):
        """wav [B, N] -> latent [B, T, D]."""
        return self.encoder(wav[..., None], length)

    def synthesise(self, quantised, mask, train: bool = False):
        """quantised [B, T, D] -> wav float32 [B, T * hop]."""
        return self.decoder(quantised)[..., 0].astype(jnp.float32)

    def level_path(self, level: int) -> tuple[str, ...]:
        """Where the variables of a level are below `quantizer`."""
        if level < self.semantic:
            return ("first", f"level_{level}")
        return ("rest", f"level_{level - self.semantic}")


def _transformer(codec: Mimi, name: str, part: str) -> list[Tensor]:
    width, hidden, rows = codec.width, codec.hidden, []
    for index in range(codec.transformer_layers):
        there = f"{name}.layers.{index}"
        here = ("params", part, "transformer", f"layer_{index}")
        rows += [
            *affine(f"{there}.input_layernorm", (*here, "attention_norm"), width),
            *affine(f"{there}.post_attention_layernorm", (*here, "mlp_norm"), width),
            *linear(f"{there}.mlp.fc1", (*here, "up"), hidden, width, bias=False),
            *linear(f"{there}.mlp.fc2", (*here, "down"), width, hidden, bias=False),
            Tensor(f"{there}.self_attn_layer_scale.scale", (width,), (*here, "attention_scale")),
            Tensor(f"{there}.mlp_layer_scale.scale", (width,), (*here, "mlp_scale")),
        ]
        ours = {"q": "query", "k": "key", "v": "value", "o": "out"}
        for letter, name_here in ours.items():
            path = (*here, "attention", name_here)
            rows += linear(f"{there}.self_attn.{letter}_proj", path, width, width, bias=False)
    return rows


def _quantizer(codec: Mimi) -> list[Tensor]:
    width, dim, codes, rows = codec.width, codec.code_dim, codec.codebook_size, []
    parts = {"semantic": ("first", codec.semantic), "acoustic": ("rest", 0)}
    parts["acoustic"] = ("rest", codec.levels - codec.semantic)
    for theirs, (ours, levels) in parts.items():
        name = f"quantizer.{theirs}_residual_vector_quantizer"
        if dim != width:
            here = ("params", "quantizer", ours)
            rows += [
                Tensor(
                    f"{name}.input_proj.weight", (dim, width, 1), (*here, "in_proj"), "pointwise"
                ),
                Tensor(
                    f"{name}.output_proj.weight", (width, dim, 1), (*here, "out_proj"), "pointwise"
                ),
            ]
        for level in range(levels):
            there = f"{name}.layers.{level}.codebook"
            kept = ("batch_stats", "quantizer", ours, f"level_{level}")
            rows += [
                Tensor(f"{there}.initialized", (1,), (), constant=inited),
                Tensor(f"{there}.cluster_usage", (codes,), (*kept, "cluster_size")),
                Tensor(f"{there}.embed_sum", (codes, dim), (*kept, "embed_sum")),
            ]
    return rows


def tensor_table(codec: Mimi) -> list[Tensor]:
    """Every tensor of the published layout for this architecture."""
    width, taps = codec.width, 2 * codec.frame_stride
    encoder, decoder = (("params", part, "seanet") for part in ("encoder", "decoder"))
    down, up = ("params", "encoder", "down", "kernel"), ("params", "decoder", "up", "kernel")
    return [
        *SEANetRows(codec.seanet, "encoder", encoder, TRANSFORMERS).encoder(),
        *_transformer(codec, "encoder_transformer", "encoder"),
        Tensor("downsample.conv.weight", (width, width, taps), down, "conv"),
        *_quantizer(codec),
        Tensor("upsample.conv.weight", (width, 1, taps), up, "conv_frames"),
        *_transformer(codec, "decoder_transformer", "decoder"),
        *SEANetRows(codec.seanet, "decoder", decoder, TRANSFORMERS).decoder(),
    ]


def recognises(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> bool:
    """Whether these tensors' names are transformers' for Mimi."""
    first = "quantizer.semantic_residual_vector_quantizer.layers.0.codebook.embed_sum"
    return first in shapes and "encoder.layers.0.conv.weight" in shapes


def infer_fields(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Every field that shapes tell."""
    sizes = seanet_sizes(shapes, "encoder", TRANSFORMERS)
    for name in ("bidirectional", "activation", "lstm_layers"):
        del sizes[name]
    book = "quantizer.{}_residual_vector_quantizer.layers.{{}}.codebook.embed_sum"
    semantic, acoustic = (book.format(part) for part in ("semantic", "acoustic"))
    layers = "encoder_transformer.layers.{}.mlp.fc1.weight"
    return dict(
        sizes,
        frame_stride=size(shapes, "downsample.conv.weight", 2) // 2,
        transformer_layers=count(shapes, layers),
        hidden=size(shapes, layers.format(0), 0),
        codebook_size=size(shapes, semantic.format(0), 0),
        code_dim=size(shapes, semantic.format(0), 1),
        semantic=count(shapes, semantic),
        levels=count(shapes, semantic) + count(shapes, acoustic),
    )


def from_published(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[Mimi, dict]:
    """Published names -> (Mimi, {"params", "batch_stats"} of numpy arrays), bits kept.

    `config`: transformers' config.json, or fields of Mimi. Raises LayoutError.
    """
    fields = {**infer_fields(layout.shapes_of(tensors)), **told(Mimi, config)}
    fields |= {ours: config[theirs] for theirs, ours in CONFIG.items() if theirs in config}
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        fields["rope_theta"] = float(rope["rope_theta"])
    codec = Mimi(**fields)
    if codec.width % codec.heads:
        raise LayoutError(f"{codec.heads} heads do not divide width {codec.width}")
    variables = layout.to_variables(tensor_table(codec), tensors)
    for part, stats in variables["batch_stats"]["quantizer"].items():
        for level, kept in stats.items():
            book = _codebook(kept)
            if codec.learning == "ema":
                kept["codebook"] = book
            else:
                there = variables["params"].setdefault("quantizer", {}).setdefault(part, {})
                there[level] = {"codebook": book}
    return codec, variables


def _codebook(kept: Mapping[str, np.ndarray]) -> np.ndarray:
    """The published definition: the mean of what chose each code."""
    return kept["embed_sum"] / np.maximum(kept["cluster_size"], np.float32(SMALLEST_USAGE))[:, None]


def to_published(codec: Mimi, variables: Mapping) -> dict[str, np.ndarray]:
    """{"params", "batch_stats"} -> published names; a pure copy.

    The layout holds a codebook as a sum and a count. Where training moved it otherwise than by
    these, the sum is written that gives the codebook for the count.
    """
    state = layout.to_state_dict(tensor_table(codec), variables)
    parts = {"semantic": "first", "acoustic": "rest"}
    for theirs, ours in parts.items():
        for level, kept in variables["batch_stats"]["quantizer"][ours].items():
            if codec.learning == "ema":
                book = np.asarray(kept["codebook"])
            else:
                book = np.asarray(variables["params"]["quantizer"][ours][level]["codebook"])
            kept = {name: np.asarray(value) for name, value in kept.items()}
            if not np.array_equal(book, _codebook(kept)):
                name = f"quantizer.{theirs}_residual_vector_quantizer.layers"
                usage = np.maximum(kept["cluster_size"], np.float32(SMALLEST_USAGE))
                index = level.removeprefix("level_")
                state[f"{name}.{index}.codebook.embed_sum"] = book * usage[:, None]
    return state
