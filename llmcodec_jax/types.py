"""The few nouns that every part of the system shares.

Shapes: B clips, N samples, T = ceil(N / hop) frames, S text tokens, D codec width,
d search width of the quantiser (8), V codes, H language-model width, P aligned layers.
"""

from __future__ import annotations

from typing import Protocol

import flax.struct
import jax

DOMAINS = ("speech", "vocal", "music", "audio", "other")
"""Domain names; `Batch.domain` holds indices into this tuple."""


@flax.struct.dataclass
class Batch:
    """One training or evaluation batch. Everything past a length is padding and is masked."""

    wav: jax.Array  # float32 [B, N], in [-1, 1], zero past wav_length
    wav_length: jax.Array  # int32 [B], valid samples
    text_ids: jax.Array  # int32 [B, S], the LM's own text tokens, 0 past text_length
    text_length: jax.Array  # int32 [B], 0 where the clip has no (aligned) text
    domain: jax.Array  # int32 [B], index into DOMAINS
    example_id: jax.Array  # uint32 [B], stable hash of the record's name


@flax.struct.dataclass
class CodecOutput:
    """What a codec's encoder and quantiser say about a batch of clips."""

    latent: jax.Array  # [B, T, D], encoder output before the quantiser
    codes: jax.Array  # int32 [B, T], or [B, T, Q] with Q residual levels; 0 on padded frames
    quantised: jax.Array  # [B, T, D], after the out projection, straight-through to the encoder
    query: jax.Array  # float32 [B, T, d], first level's L2-normalised search vectors
    vq_loss: jax.Array  # float32 [B], mean over the clip's valid frames (method.md 1)
    frame_mask: jax.Array  # bool [B, T], True on valid frames


@flax.struct.dataclass
class LMOutput:
    """What leaves the frozen language model in training: never all hidden states."""

    hidden: jax.Array  # [B, S, H], after the final norm
    pooled: jax.Array  # float32 [P, B, H], residual stream at one position of each aligned layer


Losses = dict[str, tuple[jax.Array, jax.Array]]
"""name -> (sum over valid elements, their count). `metrics.means` is the one place that divides."""


class Codec(Protocol):
    """What the trainer asks of a codec: a Flax module with these fields and methods.

    Methods run through `codec.apply(variables, ..., method="encode")` with
    `variables = {"params": ..., "batch_stats": ...}`. A second architecture is a new file
    that satisfies this protocol, not a new trainer.
    """

    sample_rate: int  # Hz
    hop: int  # samples per frame
    codebook_size: int

    def encode(self, wav, wav_length, domain=None, train: bool = False) -> CodecOutput:
        """wav [B, N] (N a multiple of hop), wav_length [B] -> CodecOutput with T = N / hop.

        `domain` int32 [B] limits the search to each clip's partition; None opens all codes.
        `train=True` updates `batch_stats` (pass `mutable=["batch_stats"]`).
        """

    def decode(self, quantised, frame_mask=None, train: bool = False) -> jax.Array:
        """quantised [B, T, D], frame_mask bool [B, T] -> wav float32 [B, T * hop]."""

    def lookup(self, codes) -> jax.Array:
        """codes [B, T] or [B, T, Q] -> quantised [B, T, D]."""

    def search_table(self) -> jax.Array:
        """L2-normalised first-level codebook, float32 [V, d]: `query @ table.T` is the search."""
