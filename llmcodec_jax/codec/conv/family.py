"""What the convolutional families share of `types.Codec`: lengths, masks, the order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from llmcodec_jax.codec.base import CodecModule
from llmcodec_jax.codec.conv.layers import FOLDED
from llmcodec_jax.codec.conv.residual_vq import Quantised
from llmcodec_jax.codec.layout import LayoutError
from llmcodec_jax.codec.quantizer import revive_dead_codes
from llmcodec_jax.types import CodecOutput, Search

FOLD_FRAMES = 8  # of the clip by which folded values are found; any number gives the same


class ConvCodec(CodecModule):
    """Base of a family: it has `strides`, `levels` and the three methods below.

    `analyse(wav [B, N], length) -> latent [B, T, D]`, `length` int32 [B] in samples, whole frames,
    or None; `quantise(latent, mask, domain, levels, train) -> Quantised`;
    `synthesise` of CodecModule.
    """

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.strides)

    def fold(self, variables: dict) -> dict:
        """The same variables and, beside them, what follows from them alone (`conv.layers`).

        For use of a codec, not for its training: kernels are finished once, not at every call.
        """
        chunk = jnp.zeros((1, FOLD_FRAMES * self.hop), jnp.float32)

        def follow(variables):
            return self.apply(variables, chunk, method="reconstruct", mutable=[FOLDED])[1]

        return {**variables, **jax.jit(follow)(variables)}

    def encode(
        self, wav, wav_length=None, domain=None, train: bool = False, levels: int | None = None
    ) -> CodecOutput:
        """wav [B, N], N a multiple of hop; wav_length int [B] or None (all N) -> CodecOutput.

        Each clip is taken as zero-padded to whole frames; what follows it in the batch is nothing
        to it. `levels` uses the first so many codebooks alone.
        """
        if wav.shape[1] % self.hop:
            raise ValueError(f"{wav.shape[1]} samples are not a multiple of hop {self.hop}")
        frames, length = wav.shape[1] // self.hop, None
        mask = jnp.ones((wav.shape[0], frames), bool)
        if wav_length is not None:
            wav = jnp.where(jnp.arange(wav.shape[1]) < wav_length[:, None], wav, 0.0)
            whole = -(-wav_length // self.hop)
            mask, length = jnp.arange(frames) < whole[:, None], whole * self.hop
        latent = self.analyse(wav, length)
        found = self.quantise(latent, mask, domain, levels, train)
        codes = found.codes[..., 0] if self.levels == 1 else found.codes
        return CodecOutput(latent, codes, found.quantised, found.query, found.loss, mask)

    def lookup(self, codes) -> jax.Array:
        """codes [B, T] or [B, T, q], q <= levels -> quantised [B, T, D]."""
        return self.quantizer.lookup(codes[..., None] if codes.ndim == 2 else codes)


class EuclideanCodec(ConvCodec):
    """A family whose `quantizer` is a ResidualEuclidean of its `levels`, `learning` a field."""

    first_codebook = 0  # the first level that has one

    def quantise(self, latent, mask, domain, levels, train) -> Quantised:
        """latent [B, T, D] -> Quantised."""
        return self.quantizer(latent, mask, levels, train)

    def search(self, level: int = 0) -> Search:
        """One level's codebook, float32 [V, d]."""
        return Search(self.quantizer.table(level), "euclidean")

    def revive(self, variables: dict, output: CodecOutput, key, threshold: float = 0.02) -> dict:
        """Moves the dead codes of every level to what it searched for in one batch.

        `variables` = {"params", "batch_stats"} of this codec, `output` of the batch just seen.
        Pure: returns new variables. See `quantizer.revive_dead_codes`.
        """
        stats, params = (flatten_dict(dict(variables[kind])) for kind in ("batch_stats", "params"))
        books = stats if self.learning == "ema" else params
        for q in range(self.first_codebook, self.levels):
            here = ("quantizer", *self.level_path(q))
            size, book = (*here, "cluster_size"), (*here, "codebook")
            counted, old = jnp.sum(stats[size]), books[book]
            books[book], share = revive_dead_codes(
                old,
                stats[size] / counted,
                output.query[:, :, q],
                output.frame_mask,
                jax.random.fold_in(key, q),
                threshold,
            )
            stats[size] = share * counted
            moved = jnp.any(books[book] != old, axis=-1, keepdims=True)
            total = books[book] * stats[size][:, None]
            stats[(*here, "embed_sum")] = jnp.where(moved, total, stats[(*here, "embed_sum")])
        return {**variables, "params": unflatten_dict(params), "batch_stats": unflatten_dict(stats)}

    def level_path(self, level: int) -> tuple[str, ...]:
        """Where the variables of a level are below `quantizer`."""
        return (f"level_{level}",)


def told(cls: Any, config: Mapping[str, Any], published: tuple[str, ...] = ()) -> dict[str, Any]:
    """Fields of `cls` that a config tells, lists as tuples.

    A config of our own holds fields of the module alone and tells them all; of a published one,
    whose names mean other things, only the fields named in `published` are taken.
    """
    fields = {field.name for field in dataclasses.fields(cls)}
    names = fields if set(config) <= fields else published
    return {name: _tuples(config[name]) for name in names if name in config}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def size(shapes: Mapping[str, tuple[int, ...]], name: str, axis: int) -> int:
    """One size of a published tensor. Raises LayoutError where there is none."""
    if name not in shapes or len(shapes[name]) <= axis:
        raise LayoutError(f"{name} is missing or has too few dimensions")
    if shapes[name][axis] < 1:
        raise LayoutError(f"{name} is empty")
    return shapes[name][axis]


def count(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    """How many names fit `pattern`, a format string with one counter that starts at 0."""
    number = 0
    while pattern.format(number) in shapes:
        number += 1
    return number
