"""The few nouns that every part of the system shares.

Shapes: B clips, N samples, T = ceil(N / hop) frames, S text tokens, D codec width,
d search width of the quantiser, Q residual levels, V codes, H language-model width,
P aligned layers.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

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
    # float32 [B, T, Dt], a teacher's at the codec's frames, where a run distils (training/teacher).
    features: jax.Array | None = None


@flax.struct.dataclass
class CodecOutput:
    """What a codec's encoder and quantiser say about a batch of clips."""

    latent: jax.Array  # [B, T, D], encoder output before the quantiser
    codes: jax.Array  # int32 [B, T], or [B, T, Q] with Q residual levels; 0 on padded frames
    quantised: jax.Array  # [B, T, D], what the decoder reads, straight-through to the encoder
    query: jax.Array  # float32 [B, T, Q, d], what each level searched with (see Search)
    vq_loss: jax.Array  # float32 [B], mean over the clip's valid frames (method.md 1)
    frame_mask: jax.Array  # bool [B, T], True on valid frames

    def level(self, index: int) -> CodecOutput:
        """The same with one level's codes [B, T] and query [B, T, 1, d]."""
        codes = self.codes if self.codes.ndim == 2 else self.codes[..., index]
        return dataclasses.replace(self, codes=codes, query=self.query[:, :, index : index + 1])


@flax.struct.dataclass
class LMOutput:
    """What leaves the frozen language model in training: never all hidden states."""

    hidden: jax.Array  # [B, S, H], after the final norm
    pooled: jax.Array  # float32 [P, B, H], residual stream at one position of each aligned layer


Losses = dict[str, tuple[jax.Array, jax.Array]]
"""name -> (sum over valid elements, their count). `metrics.means` is the one place that divides."""


@flax.struct.dataclass
class Search:
    """How one level of a quantiser chooses: the code whose row of `table` is best for the query.

    "cosine": rows and queries of unit length, the largest product; "euclidean": raw ones, the
    smallest distance; "product": all V grid points of a finite scalar quantiser, the smallest
    distance, which rounding finds without a search.
    """

    table: jax.Array  # float32 [V, d]
    metric: str = flax.struct.field(pytree_node=False)  # "cosine", "euclidean" or "product"


class Codec(Protocol):
    """What the system asks of a codec: a Flax module with these fields and methods.

    Methods run through `codec.apply(variables, ..., method="encode")` with
    `variables = {"params": ...}`, beside it "batch_stats" where there are running statistics.
    Abilities that a family may have besides: `revive` (dead codes), `domain_bounds` (partitions);
    a run that asks for one that is not there is refused when it is built.
    """

    sample_rate: int  # Hz
    hop: int  # samples per frame
    codebook_size: int  # V, of each level
    levels: int  # Q, residual codebooks
    width: int  # D

    def init(self, rngs, *args, **kwargs) -> Any:
        """Flax's: variables from keys and example arguments of `method`."""

    def apply(self, variables, *args, **kwargs) -> Any:
        """Flax's: what `method` returns, and changed collections beside it if `mutable`."""

    def clone(self, **changes) -> Any:
        """Flax's: the module with other fields."""

    def encode(
        self, wav, wav_length=None, domain=None, train: bool = False, levels: int | None = None
    ) -> CodecOutput:
        """wav [B, N] (N a multiple of hop), wav_length [B] or None -> CodecOutput, T = N / hop.

        `domain` int32 [B] limits the search to each clip's partition; None opens all codes.
        `train=True` updates `batch_stats` (pass `mutable=["batch_stats"]`). `levels` searches
        only so many levels; None all.
        """

    def decode(self, quantised, frame_mask=None, train: bool = False) -> jax.Array:
        """quantised [B, T, D], frame_mask bool [B, T] -> wav float32 [B, T * hop]."""

    def reconstruct(
        self, wav, wav_length=None, domain=None, train: bool = False, levels: Any = None
    ) -> tuple[CodecOutput, jax.Array]:
        """Encode and decode in one pass -> (CodecOutput, wav float32 [B, N])."""

    def lookup(self, codes) -> jax.Array:
        """codes [B, T] or [B, T, q], q <= Q -> quantised [B, T, D]."""

    def decode_codes(self, codes, frame_mask=None) -> jax.Array:
        """codes [B, T] or [B, T, q] -> wav float32 [B, T * hop]."""

    def search(self, level: int = 0) -> Search:
        """What that level's `query` of a CodecOutput was compared with."""
