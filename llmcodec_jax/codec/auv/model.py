"""AUV: audio, Conformer encoder, factorised quantiser, Conformer decoder, audio (method.md 1)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax.codec.auv.conformer import Conformer
from llmcodec_jax.codec.auv.stft import ISTFTHead, STFTHead, margin
from llmcodec_jax.codec.base import CodecModule
from llmcodec_jax.codec.quantizer import FactorisedCodec, ResidualQuantizer
from llmcodec_jax.ops import dsp
from llmcodec_jax.ops.fields import changeable
from llmcodec_jax.types import DOMAINS, CodecOutput

NESTED = {
    "speech": (0.0, 0.4),
    "vocal": (0.0, 0.6),
    "music": (0.0, 1.0),
    "audio": (0.0, 1.0),
    "other": (0.6, 1.0),
}
"""The published partitions as shares of the codebook: of 20480, speech has [0, 8192)."""


def nested_partitions(codebook_size: int) -> tuple[tuple[int, int], ...]:
    """The published nested partitions for a codebook of any size, in the order of DOMAINS."""
    return tuple(
        (round(NESTED[name][0] * codebook_size), round(NESTED[name][1] * codebook_size))
        for name in DOMAINS
    )


class Encoder(nn.Module):
    """Padded audio [B, N + 2 * margin], frame mask [B, N // hop] or None -> latent [B, T, D]."""

    width: int
    hop: int
    dtype: Any
    conformer: dict[str, Any]

    @nn.compact
    def __call__(self, padded, mask, train: bool = False) -> jax.Array:
        features = STFTHead(self.width, self.hop, self.dtype, name="stft_head")(padded)
        return Conformer(**self.conformer, dtype=self.dtype, name="conformer")(
            features, mask, train
        )


class Decoder(nn.Module):
    """Quantised [B, T, D], frame mask [B, T] or None -> audio float32 [B, T * hop]."""

    hop: int
    dtype: Any
    conformer: dict[str, Any]

    @nn.compact
    def __call__(self, quantised, mask, train: bool = False) -> jax.Array:
        hidden = Conformer(**self.conformer, dtype=self.dtype, name="conformer")(
            quantised, mask, train
        )
        return ISTFTHead(self.hop, self.dtype, name="istft_head")(hidden, mask)


class AUV(FactorisedCodec, CodecModule):
    """The published codec at any size; satisfies `types.Codec`.

    The defaults are the published 122,628,882 parameters. Parameters: `encoder/...`,
    `quantizer/level_0/...`, `decoder/...`, layers stacked on a leading axis. `batch_stats`: the
    BatchNorm statistics and the running share of each code, both updated only by `train=True`
    (training from scratch); fine-tuning runs with `train=False` throughout.
    """

    sample_rate: int = 16_000  # Hz
    hop: int = 320  # samples per frame; the transform is four hops long
    width: int = 512  # D
    encoder_layers: int = 8
    decoder_layers: int = 12
    head_dim: int = 64  # width of an attention head
    ffn_multiple: int = 4  # feed-forward width over D
    conv_kernel: int = 31  # taps of the depthwise convolution
    conv_norm: str = "batch"  # "batch" as published, or "rms", which keeps no statistics
    codebook_size: int = 20_480  # V
    code_dim: int = 8  # width of the search space
    levels: int = 1  # residual codebooks
    # Codes open to each of DOMAINS in training: "nested" as published, scaled to the codebook;
    # ((lo, hi), ...) in the order of DOMAINS; None leaves all codes open to all.
    partitions: str | tuple[tuple[int, int], ...] | None = "nested"
    search_chunk: int = changeable(4096)  # codes compared at once: memory, never the result
    dtype: Any = changeable("float32")  # of products; transforms and search stay float32
    remat: bool = changeable(False)  # recompute products too in the backward pass: memory for time

    def setup(self):
        if self.conv_norm not in ("batch", "rms"):
            raise ValueError("conv_norm is 'batch' or 'rms'")
        shared = dict(
            head_dim=self.head_dim,
            ffn_multiple=self.ffn_multiple,
            kernel=self.conv_kernel,
            conv_norm=self.conv_norm,
            remat=self.remat,
        )
        dtype = jnp.dtype(self.dtype)
        self.encoder = Encoder(
            self.width, self.hop, dtype, dict(layers=self.encoder_layers, **shared)
        )
        self.quantizer = ResidualQuantizer(
            self.width, self.codebook_size, self.code_dim, self.levels, self.search_chunk
        )
        self.decoder = Decoder(self.hop, dtype, dict(layers=self.decoder_layers, **shared))

    def domain_bounds(self) -> np.ndarray | None:
        """Codes [lo, hi) open to each of DOMAINS, int32 [5, 2]; None where all are open."""
        if self.partitions is None:
            return None
        nested = isinstance(self.partitions, str)
        bounds = nested_partitions(self.codebook_size) if nested else self.partitions
        bounds = np.asarray(bounds, np.int32)
        if bounds.shape != (len(DOMAINS), 2) or (bounds[:, 0] >= bounds[:, 1]).any():
            raise ValueError(f"partitions need one non-empty (lo, hi) for each of {DOMAINS}")
        return bounds

    def encode(
        self, wav, wav_length=None, domain=None, train: bool = False, levels: int | None = None
    ) -> CodecOutput:
        """wav [B, N], N a multiple of hop; wav_length int [B] or None (all N) -> CodecOutput.

        `levels`: how many residual levels to search, all by default.

        Each clip is taken as zero-padded to whole frames and carries its own reflected margins,
        so its codes never depend on its companions or its padding (method.md 1).
        """
        if wav.shape[1] % self.hop:
            raise ValueError(f"{wav.shape[1]} samples are not a multiple of hop {self.hop}")
        whole = None
        if wav_length is not None:
            wav = jnp.where(jnp.arange(wav.shape[1]) < wav_length[:, None], wav, 0.0)
            whole = -(-wav_length // self.hop) * self.hop
        padded = dsp.reflect_pad(wav, whole, margin(self.hop), margin(self.hop))
        return self.encode_padded(padded, wav_length, domain, train, levels)

    def encode_padded(
        self, padded, wav_length=None, domain=None, train: bool = False, levels: int | None = None
    ) -> CodecOutput:
        """The model core: audio that already carries its margins, [B, margin + N + margin].

        Frames at or past ceil(wav_length / hop) are masked. With one clip's margins placed at
        the end of the batch instead of its own, this is the published batching.
        """
        frames = (padded.shape[1] - 2 * margin(self.hop)) // self.hop
        mask = None
        if wav_length is not None:
            mask = jnp.arange(frames) < -(-wav_length[:, None] // self.hop)
        latent = self.encoder(padded, mask, train)
        valid = jnp.ones(latent.shape[:2], bool) if mask is None else mask
        table = self.domain_bounds()
        bounds = None if domain is None or table is None else jnp.asarray(table)[domain]
        quantised, codes, query, loss = self.quantizer(latent, valid, bounds, train, levels)
        return CodecOutput(latent, codes, quantised, query, loss, valid)

    def synthesise(self, quantised, mask, train: bool = False) -> jax.Array:
        """quantised [B, T, D], mask bool [B, T] or None -> wav float32 [B, T * hop]."""
        return self.decoder(quantised, mask, train)

    def lookup(self, codes) -> jax.Array:
        """codes [B, T] or [B, T, Q] -> quantised [B, T, D]."""
        return self.quantizer.lookup(codes)
