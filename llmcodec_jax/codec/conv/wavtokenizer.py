"""WavTokenizer: one codebook at 75 or 40 frames a second (Ji et al. 2024, arXiv 2408.16532).

A SEANet encoder as EnCodec's, not causal; one large Euclidean codebook that learns as a running
mean; a Vocos decoder with attention in front of its ConvNeXt blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from llmcodec_jax.codec import layout, vocos
from llmcodec_jax.codec.conv.family import ConvCodec, EuclideanCodec, size, told
from llmcodec_jax.codec.conv.residual_vq import ResidualEuclidean
from llmcodec_jax.codec.conv.rows import SEANetRows, euclidean, seanet_sizes
from llmcodec_jax.codec.conv.seanet import SEANetConfig, SEANetEncoder
from llmcodec_jax.codec.layout import Tensor
from llmcodec_jax.codec.vocos import VocosDecoder


class VocosCodec(ConvCodec):
    """A SEANet encoder, not causal, and one codebook for a Vocos decoder with a position net.

    `condition` picks the row of the decoder's adaptive norms: all published rows stand for the
    same bit rate, and the published inference uses the first.
    """

    sample_rate: int = 24_000  # Hz
    strides: tuple[int, ...] = (2, 4, 5, 8)  # in the encoder's order; the hop is their product
    filters: int = 32  # channels next to the audio
    width: int = 512  # D
    decoder_width: int = 768
    decoder_hidden: int = 2304
    decoder_layers: int = 12
    conditions: int = 4
    condition: int = 0
    dtype: Any = "float32"  # of matmuls and convolutions; transforms and search stay float32

    levels = 1

    @property
    def seanet(self) -> SEANetConfig:
        """The sizes of the encoder's convolutions."""
        return SEANetConfig.of(self, causal=False)

    def vocos(self) -> VocosDecoder:
        """The decoder."""
        return VocosDecoder(
            self.hop,
            self.decoder_width,
            self.decoder_hidden,
            self.decoder_layers,
            self.conditions,
            position_net=True,
            dtype=jnp.dtype(self.dtype),
            parent=None,
        )

    def synthesise(self, quantised, mask, train: bool = False):
        """quantised [B, T, D] -> wav [B, T * hop]."""
        return self.decoder(quantised, mask, self.condition)


class WavTokenizer(VocosCodec, EuclideanCodec):
    """The published codec at any size; satisfies `types.Codec`.

    The defaults are the 75 Hz release, strides (4, 5, 5, 6) the 40 Hz one.
    """

    lstm_layers: int = 2
    codebook_size: int = 4096  # V
    learning: str = "ema"  # of the codebook, as published; or "gradient"

    def setup(self):
        self.encoder = SEANetEncoder(self.seanet, jnp.dtype(self.dtype))
        self.quantizer = ResidualEuclidean(
            self.width, self.codebook_size, self.width, 1, self.learning
        )
        self.decoder = self.vocos()

    def analyse(self, wav, length):
        """wav [B, N] -> latent [B, T, D]."""
        return self.encoder(wav[..., None], length)[0]


ENCODEC = "feature_extractor.encodec"
PARTS = ("feature_extractor.", "backbone.", "head.")  # of a training checkpoint, what is the codec


def tensor_table(codec: WavTokenizer) -> list[Tensor]:
    """Every tensor that the codec runs on, in the published names."""
    encoder = SEANetRows(codec.seanet, f"{ENCODEC}.encoder", ("params", "encoder"))
    return [
        *encoder.encoder(),
        *euclidean(f"{ENCODEC}.quantizer.vq", 1, codec.codebook_size, codec.width, codec.learning),
        *vocos.tensor_table(codec.vocos(), codec.width, ("params", "decoder")),
    ]


def unused(codec: VocosCodec) -> dict[str, tuple[int, ...]]:
    """Tensors of the EnCodec decoder that releases carry and nothing runs, name -> shape."""
    seanet = dataclasses.replace(codec.seanet, strides=(2, 4, 5, 8), lstm_layers=2)
    return {t.name: t.shape for t in SEANetRows(seanet, f"{ENCODEC}.decoder", ()).decoder()}


def recognises(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> bool:
    """Whether these tensors' names are WavTokenizer's."""
    codebook = f"{ENCODEC}.quantizer.vq.layers.0._codebook.embed"
    return {codebook, "backbone.pos_net.2.q.weight", "head.out.weight"} <= set(shapes)


def infer_fields(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Every field that shapes tell: all but the sample rate and the condition."""
    seanet = seanet_sizes(shapes, f"{ENCODEC}.encoder")
    return dict(
        {name: seanet[name] for name in ("strides", "filters", "width", "lstm_layers")},
        **vocos.infer_fields(shapes),
        codebook_size=size(shapes, f"{ENCODEC}.quantizer.vq.layers.0._codebook.embed", 0),
    )


def from_published(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[WavTokenizer, dict]:
    """Published names -> (WavTokenizer, {"params", "batch_stats"} of numpy arrays), bits kept.

    Discriminators and the unused decoder are left out. Raises LayoutError.
    """
    tensors = {
        name: value
        for name, value in layout.modern_names(tensors).items()
        if name.startswith(PARTS) and not name.startswith(f"{ENCODEC}.decoder.")
    }
    fields = infer_fields(layout.shapes_of(tensors))
    codec = WavTokenizer(**{**fields, **told(WavTokenizer, config)})
    return codec, layout.to_variables(tensor_table(codec), tensors)


def to_published(codec: WavTokenizer, variables: Mapping) -> dict[str, np.ndarray]:
    """{"params", "batch_stats"} -> published names; the unused decoder as zeros of its shapes."""
    tensors = layout.to_state_dict(tensor_table(codec), variables)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in unused(codec).items()}
    return layout.older_names({**tensors, **zeros})
