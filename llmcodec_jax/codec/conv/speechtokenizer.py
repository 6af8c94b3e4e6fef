"""SpeechTokenizer: eight residual codebooks, the first taught by HuBERT (arXiv 2308.16692).

EnCodec's convolutions, not causal, with a bidirectional LSTM in the encoder. What the first level
keeps is mapped by `semantic` to the teacher's width: distillation pulls that to the teacher's
features, and little but content is left to the first codebook (Zhang et al. 2024, section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax.codec import layout
from llmcodec_jax.codec.conv.family import EuclideanCodec, count, size, told
from llmcodec_jax.codec.conv.residual_vq import ResidualEuclidean
from llmcodec_jax.codec.conv.rows import SEANetRows, euclidean, seanet_sizes
from llmcodec_jax.codec.conv.seanet import SEANetConfig, SEANetDecoder, SEANetEncoder
from llmcodec_jax.codec.layout import Tensor
from llmcodec_jax.types import CodecOutput


class SpeechTokenizer(EuclideanCodec):
    """The published codec at any size; satisfies `types.Codec`. The defaults are the release."""

    sample_rate: int = 16_000  # Hz
    strides: tuple[int, ...] = (2, 4, 5, 8)  # in the encoder's order; the hop is their product
    filters: int = 64  # channels next to the audio
    width: int = 1024  # D
    semantic_width: int = 768  # of the teacher's features
    lstm_layers: int = 2
    bidirectional: bool = True  # the encoder's LSTM; the decoder's looks back only
    residual_layers: int = 1  # blocks for each stride
    dilation_growth: int = 2
    activation: str = "elu"  # or "snake"
    codebook_size: int = 1024  # V
    levels: int = 8  # residual codebooks
    learning: str = "ema"  # of the codebooks, as published; or "gradient"
    dtype: Any = "float32"  # of matmuls and convolutions; the search stays float32

    @property
    def seanet(self) -> SEANetConfig:
        """The sizes of encoder and decoder."""
        return SEANetConfig.of(self, causal=False)

    def setup(self):
        dtype = jnp.dtype(self.dtype)
        self.encoder = SEANetEncoder(self.seanet, dtype)
        self.quantizer = ResidualEuclidean(
            self.width, self.codebook_size, self.width, self.levels, self.learning
        )
        self.decoder = SEANetDecoder(self.seanet, dtype)
        if self.semantic_width != self.width:
            self.transform = nn.Dense(self.semantic_width)

    def analyse(self, wav, length):
        """wav [B, N] -> latent [B, T, D]."""
        return self.encoder(wav[..., None], length)[0]

    def quantise(self, latent, mask, domain, levels, train):
        """latent [B, T, D] -> Quantised."""
        if self.is_initializing():
            self.to_semantic(latent)
        return super().quantise(latent, mask, domain, levels, train)

    def synthesise(self, quantised, mask, train: bool = False):
        """quantised [B, T, D] -> wav float32 [B, T * hop]."""
        length = None if mask is None else jnp.sum(mask, axis=1)
        return self.decoder(quantised, length)[0][..., 0].astype(jnp.float32)

    def semantic(self, output: CodecOutput) -> jax.Array:
        """What the first level keeps, as the teacher would say it: float32 [B, T, semantic_width].

        Straight-through to the encoder, as published: the distillation loss is a distance between
        this and the teacher's features.
        """
        latent = output.latent.astype(jnp.float32)
        first = self.quantizer.level[0].lookup(output.level(0).codes)
        return self.to_semantic(latent + jax.lax.stop_gradient(first - latent))

    def to_semantic(self, first: jax.Array) -> jax.Array:
        """First-level vectors [B, T, D] -> [B, T, semantic_width]."""
        return self.transform(first) if self.semantic_width != self.width else first


def tensor_table(codec: SpeechTokenizer) -> list[Tensor]:
    """Every tensor of the published layout for this architecture."""
    table = [
        *SEANetRows(codec.seanet, "encoder", ("params", "encoder")).encoder(),
        *euclidean("quantizer.vq", codec.levels, codec.codebook_size, codec.width, codec.learning),
        *SEANetRows(codec.seanet, "decoder", ("params", "decoder")).decoder(),
    ]
    if codec.semantic_width != codec.width:
        path = ("params", "transform")
        table += layout.linear("transform", path, codec.semantic_width, codec.width)
    return table


def recognises(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> bool:
    """Whether these tensors' names are SpeechTokenizer's."""
    names = ("encoder.model.0.conv.conv.bias", "quantizer.vq.layers.0._codebook.embed")
    return all(name in shapes for name in (*names, "transform.weight"))


def infer_fields(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Every field that shapes tell: all but the sample rate and the growth of the dilations."""
    codebook = "quantizer.vq.layers.{}._codebook.embed"
    return dict(
        seanet_sizes(shapes, "encoder"),
        semantic_width=size(shapes, "transform.weight", 0),
        codebook_size=size(shapes, codebook.format(0), 0),
        levels=count(shapes, codebook),
    )


def from_published(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[SpeechTokenizer, dict]:
    """Published names -> (SpeechTokenizer, {"params", "batch_stats"} of numpy arrays), bits kept.

    Raises LayoutError.
    """
    tensors = layout.modern_names(tensors)
    fields = infer_fields(layout.shapes_of(tensors))
    fields |= told(SpeechTokenizer, config, ("sample_rate",))
    if "dilation_base" in config:
        fields["dilation_growth"] = config["dilation_base"]
    codec = SpeechTokenizer(**fields)
    return codec, layout.to_variables(tensor_table(codec), tensors)


def to_published(codec: SpeechTokenizer, variables: Mapping) -> dict[str, np.ndarray]:
    """{"params", "batch_stats"} -> published names; a pure copy."""
    return layout.older_names(layout.to_state_dict(tensor_table(codec), variables))
