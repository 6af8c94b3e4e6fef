"""EnCodec: causal SEANet, LSTM, residual Euclidean codebooks (arXiv 2210.13438).

Published twice, by its authors (`encoder.model.N.conv.conv.weight_g`) and by transformers
(`encoder.layers.N.conv.weight_g`): both are read, the second is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from llmcodec_jax.codec import layout
from llmcodec_jax.codec.conv.family import EuclideanCodec, count, size, told
from llmcodec_jax.codec.conv.residual_vq import ResidualEuclidean
from llmcodec_jax.codec.conv.rows import ENCODEC, TRANSFORMERS, SEANetRows, euclidean, seanet_sizes
from llmcodec_jax.codec.conv.seanet import SEANetConfig, SEANetDecoder, SEANetEncoder
from llmcodec_jax.codec.layout import LayoutError, Tensor

NORMS = {"weight_norm": "weight", "time_group_norm": "group"}
PAD_MODES = {"constant": "zero", "zero": "zero", "reflect": "reflect", "replicate": "replicate"}
CONFIG = {
    "sampling_rate": "sample_rate",
    "num_filters": "filters",
    "hidden_size": "width",
    "kernel_size": "kernel",
    "last_kernel_size": "last_kernel",
    "residual_kernel_size": "residual_kernel",
    "dilation_growth_rate": "dilation_growth",
    "compress": "compress",
    "use_conv_shortcut": "shortcut",
    "use_causal_conv": "causal",
    "trim_right_ratio": "trim_right",
}
"""transformers' config.json -> fields."""


class EnCodec(EuclideanCodec):
    """The published 24 kHz codec at any size; satisfies `types.Codec`. The defaults are it."""

    sample_rate: int = 24_000  # Hz
    strides: tuple[int, ...] = (2, 4, 5, 8)  # in the encoder's order; the hop is their product
    filters: int = 32  # channels next to the audio
    width: int = 128  # D
    kernel: int = 7
    last_kernel: int = 7
    residual_kernel: int = 3
    residual_layers: int = 1  # blocks for each stride
    dilation_growth: int = 2
    compress: int = 2
    shortcut: bool = True
    norm: str = "weight"  # of convolutions: "weight", "group" or "none"
    causal: bool = True
    pad_mode: str = "reflect"
    lstm_layers: int = 2
    trim_right: float = 1.0
    codebook_size: int = 1024  # V
    levels: int = 32  # residual codebooks; 8 are 6 kbit/s
    learning: str = "ema"  # of the codebooks, as published; or "gradient"
    dtype: Any = "float32"  # of matmuls and convolutions; the search stays float32

    @property
    def seanet(self) -> SEANetConfig:
        """The sizes of encoder and decoder."""
        return SEANetConfig.of(self)

    @property
    def stream_lead(self) -> int:
        """Frames that the first call of a stream must see; causal networks alone have it."""
        if not self.causal or self.norm == "group":
            raise AttributeError("stream_lead")
        return self.seanet.lead

    def setup(self):
        dtype = jnp.dtype(self.dtype)
        self.encoder = SEANetEncoder(self.seanet, dtype)
        self.quantizer = ResidualEuclidean(
            self.width, self.codebook_size, self.width, self.levels, self.learning
        )
        self.decoder = SEANetDecoder(self.seanet, dtype)

    def analyse(self, wav, length):
        """wav [B, N] -> latent [B, T, D]."""
        return self.encoder(wav[..., None], length)[0]

    def synthesise(self, quantised, mask, train: bool = False):
        """quantised [B, T, D] -> wav float32 [B, T * hop]."""
        length = None if mask is None else jnp.sum(mask, axis=1)
        return self.decoder(quantised, length)[0][..., 0].astype(jnp.float32)


def tensor_table(codec: EnCodec, names=TRANSFORMERS) -> list[Tensor]:
    """Every tensor of the published layout for this architecture; `names` ENCODEC: its authors'."""
    book, codebook = (
        ("quantizer.vq", "_codebook") if names is ENCODEC else ("quantizer", "codebook")
    )
    levels, codes = codec.levels, codec.codebook_size
    return [
        *SEANetRows(codec.seanet, "encoder", ("params", "encoder"), names).encoder(),
        *SEANetRows(codec.seanet, "decoder", ("params", "decoder"), names).decoder(),
        *euclidean(book, levels, codes, codec.width, codec.learning, codebook),
    ]


def _names(shapes: Mapping[str, Any]):
    return ENCODEC if "encoder.model.0.conv.conv.bias" in shapes else TRANSFORMERS


def recognises(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> bool:
    """Whether these tensors' names are EnCodec's, or transformers' for it."""
    published = ("encoder.model.0.conv.conv.bias", "quantizer.vq.layers.0._codebook.embed")
    converted = ("encoder.layers.0.conv.bias", "quantizer.layers.0.codebook.embed")
    both = any(all(name in shapes for name in names) for names in (published, converted))
    return both and "transform.weight" not in shapes


def infer_fields(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Every field that shapes tell."""
    names = _names(shapes)
    sizes = seanet_sizes(shapes, "encoder", names)
    del sizes["bidirectional"], sizes["activation"]
    book = "quantizer.vq.layers.{}._codebook.embed"
    book = book if names is ENCODEC else "quantizer.layers.{}.codebook.embed"
    first = f"encoder.{names.sequence}.0"
    weight_norm = f"{first}.{names.conv}.bias" in shapes and (
        f"{first}.{names.conv}.weight" not in shapes
    )
    group = f"{first}.{names.conv_norm}.weight" in shapes
    return dict(
        sizes,
        norm="weight" if weight_norm else "group" if group else "none",
        codebook_size=size(shapes, book.format(0), 0),
        levels=count(shapes, book),
    )


def from_published(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[EnCodec, dict]:
    """Published names -> (EnCodec, {"params", "batch_stats"} of numpy arrays), bits kept.

    `config`: transformers' config.json, or fields of EnCodec. Raises LayoutError.
    """
    tensors = layout.modern_names(tensors)
    shapes = layout.shapes_of(tensors)
    fields = {**infer_fields(shapes), **told(EnCodec, config)}
    fields |= {ours: config[theirs] for theirs, ours in CONFIG.items() if theirs in config}
    if config.get("pad_mode") in PAD_MODES:
        fields["pad_mode"] = PAD_MODES[config["pad_mode"]]
    if config.get("audio_channels", 1) != 1 or fields["norm"] == "group":
        raise LayoutError("a stereo EnCodec (48 kHz) is not read: only mono ones, as 24 kHz")
    codec = EnCodec(**fields)
    return codec, layout.to_variables(tensor_table(codec, _names(shapes)), tensors)


def to_published(codec: EnCodec, variables: Mapping) -> dict[str, np.ndarray]:
    """{"params", "batch_stats"} -> transformers' names; a pure copy."""
    return layout.older_names(layout.to_state_dict(tensor_table(codec), variables))
