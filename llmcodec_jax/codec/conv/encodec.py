"""EnCodec: SEANet, LSTM, residual Euclidean codebooks (arXiv 2210.13438).

Two releases: 24 kHz, causal; 48 kHz, which hears a second at a time, each at unit loudness, with
norms over all of it. The second is stereo; here both its channels are given the same sound, and
their mean is taken. Published twice, by its authors (`encoder.model.N.conv.conv.weight_g`) and by
transformers (`encoder.layers.N.conv.weight_g`): both are read, the second is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from llmcodec_jax.codec import layout
from llmcodec_jax.codec.conv import loudness
from llmcodec_jax.codec.conv.family import EuclideanCodec, count, size, told
from llmcodec_jax.codec.conv.residual_vq import Quantised, ResidualEuclidean
from llmcodec_jax.codec.conv.rows import ENCODEC, TRANSFORMERS, SEANetRows, euclidean, seanet_sizes
from llmcodec_jax.codec.conv.seanet import SEANetConfig, SEANetDecoder, SEANetEncoder
from llmcodec_jax.codec.layout import Tensor
from llmcodec_jax.codec.quantizer import used_levels
from llmcodec_jax.types import Search

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
    "audio_channels": "channels",
    "normalize": "normalise",
}
"""transformers' config.json -> fields."""


RELEASE_48KHZ = dict(
    sample_rate=48_000, channels=2, norm="group", causal=False, normalise=True, window_seconds=1.0
)
"""What tells the stereo release from the other one; its tensors say so by their group norms."""


class EnCodec(EuclideanCodec):
    """The published codecs at any size; satisfies `types.Codec`. The defaults are 24 kHz.

    Under `normalise` the first level is the clip's loudness, the same code in every frame
    (`conv.loudness`), and `levels` and `width` count it.
    """

    sample_rate: int = 24_000  # Hz
    strides: tuple[int, ...] = (2, 4, 5, 8)  # in the encoder's order; the hop is their product
    filters: int = 32  # channels next to the audio
    width: int = 128  # D; the network's own is one less under `normalise`
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
    channels: int = 1  # of the network: copies of one sound
    normalise: bool = False  # to unit loudness
    window_seconds: float = 0.0  # audio is coded in windows so long; 0: as long as fits in memory
    codebook_size: int = 1024  # V
    levels: int = 32  # residual codebooks; 8 are 6 kbit/s
    learning: str = "ema"  # of the codebooks, as published; or "gradient"
    dtype: Any = "float32"  # of matmuls and convolutions; the search stays float32

    @property
    def seanet(self) -> SEANetConfig:
        """The sizes of encoder and decoder."""
        return SEANetConfig.of(self, width=self.width - self.normalise)

    @property
    def first_codebook(self) -> int:
        """The first level that has a codebook."""
        return int(self.normalise)

    @property
    def stream_lead(self) -> int | None:
        """Frames that the first call of a stream must see; None of a network that looks ahead."""
        return self.seanet.lead if self.causal and self.norm != "group" else None

    def setup(self):
        dtype = jnp.dtype(self.dtype)
        self.encoder = SEANetEncoder(self.seanet, dtype)
        width, levels = self.seanet.width, self.levels - self.first_codebook
        self.quantizer = ResidualEuclidean(width, self.codebook_size, width, levels, self.learning)
        self.decoder = SEANetDecoder(self.seanet, dtype)

    def analyse(self, wav, length):
        """wav [B, N] -> latent [B, T, D]."""
        if not self.normalise:
            return self._encoder(wav, length)
        scale = loudness.measure(wav, length)
        latent = self._encoder(wav / scale[:, None], length)
        return self._with_loudness(latent, jnp.log10(scale)[:, None])

    def synthesise(self, quantised, mask, train: bool = False):
        """quantised [B, T, D] -> wav float32 [B, T * hop]."""
        length = None if mask is None else jnp.sum(mask, axis=1)
        latent = quantised[..., : self.seanet.width]
        wav = jnp.mean(self.decoder(latent, length)[0].astype(jnp.float32), axis=-1)
        if not self.normalise:
            return wav
        return wav * jnp.repeat(10.0 ** quantised[..., -1], self.hop, axis=1)

    def quantise(self, latent, mask, domain, levels, train) -> Quantised:
        """latent [B, T, D] -> Quantised; its first level is the loudness under `normalise`."""
        if not self.normalise:
            return super().quantise(latent, mask, domain, levels, train)
        computed, used = used_levels(self.levels, levels)
        if computed == 1:  # the loudness alone: every codebook is left out
            used = jnp.ones(mask.shape[:1], jnp.int32)
        depth = computed - 1 if used is None else used - 1
        found = self.quantizer(latent[..., :-1], mask, depth, train)
        loud = latent[..., -1].astype(jnp.float32)
        code = jnp.where(mask, loudness.nearest(loud, self.codebook_size), 0)
        query = jnp.pad(loud[..., None, None], ((0, 0),) * 3 + ((0, self.seanet.width - 1),))
        return Quantised(
            self._with_loudness(found.quantised, self._loudness_of(code)),
            jnp.concatenate([code[..., None], found.codes], axis=-1)[..., :computed],
            jnp.concatenate([query, found.query], axis=2)[:, :, :computed],
            found.loss,
        )

    def lookup(self, codes):
        """codes [B, T, q], q <= levels -> quantised [B, T, D]."""
        if not self.normalise:
            return super().lookup(codes)
        latent = jnp.zeros((*codes.shape[:2], self.seanet.width), jnp.float32)
        if codes.shape[-1] > 1:
            latent = self.quantizer.lookup(codes[..., 1:])
        return self._with_loudness(latent, self._loudness_of(codes[..., 0]))

    def search(self, level: int = 0) -> Search:
        """One level's codebook, float32 [V, d]."""
        if level < self.first_codebook:
            return Search(loudness.level_table(self.codebook_size, self.seanet.width), "euclidean")
        return super().search(level - self.first_codebook)

    def level_path(self, level: int) -> tuple[str, ...]:
        """Where the variables of a level are below `quantizer`."""
        return super().level_path(level - self.first_codebook)

    def _encoder(self, wav, length):
        """wav [B, N] -> the network's latent [B, T, D], every channel given the same."""
        return self.encoder(jnp.repeat(wav[..., None], self.channels, axis=-1), length)[0]

    def _with_loudness(self, latent, log_loudness):
        """latent [B, T, D - 1], log10 of amplitudes [B, T or 1] -> float32 [B, T, D]."""
        last = jnp.broadcast_to(log_loudness[..., None], (*latent.shape[:2], 1))
        return jnp.concatenate([latent.astype(jnp.float32), last], axis=-1)

    def _loudness_of(self, code):
        return loudness.level_table(self.codebook_size, 1)[code, 0]


def tensor_table(codec: EnCodec, names=TRANSFORMERS) -> list[Tensor]:
    """Every tensor of the published layout for this architecture; `names` ENCODEC: its authors'."""
    book, codebook = (
        ("quantizer.vq", "_codebook") if names is ENCODEC else ("quantizer", "codebook")
    )
    levels, codes = codec.levels - codec.first_codebook, codec.codebook_size
    return [
        *SEANetRows(codec.seanet, "encoder", ("params", "encoder"), names).encoder(),
        *SEANetRows(codec.seanet, "decoder", ("params", "decoder"), names).decoder(),
        *euclidean(book, levels, codes, codec.seanet.width, codec.learning, codebook),
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
    """Every field that shapes tell: `width` of the network, `levels` of its codebooks."""
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
    found = dict(
        sizes,
        norm="weight" if weight_norm else "none",
        codebook_size=size(shapes, book.format(0), 0),
        levels=count(shapes, book),
    )
    return found | RELEASE_48KHZ if group else found


def from_published(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[EnCodec, dict]:
    """Published names -> (EnCodec, {"params", "batch_stats"} of numpy arrays), bits kept.

    `config`: transformers' config.json, or fields of EnCodec. Raises LayoutError.
    """
    tensors = layout.modern_names(tensors)
    shapes = layout.shapes_of(tensors)
    fields = infer_fields(shapes)
    fields |= {ours: config[theirs] for theirs, ours in CONFIG.items() if theirs in config}
    if fields.get("normalise"):
        fields |= {name: fields[name] + 1 for name in ("width", "levels")}
    if "chunk_length_s" in config:
        fields["window_seconds"] = config["chunk_length_s"] or 0.0
    fields |= told(EnCodec, config)
    if config.get("pad_mode") in PAD_MODES:
        fields["pad_mode"] = PAD_MODES[config["pad_mode"]]
    codec = EnCodec(**fields)
    return codec, layout.to_variables(tensor_table(codec, _names(shapes)), tensors)


def to_published(codec: EnCodec, variables: Mapping) -> dict[str, np.ndarray]:
    """{"params", "batch_stats"} -> transformers' names; a pure copy."""
    return layout.older_names(layout.to_state_dict(tensor_table(codec), variables))
