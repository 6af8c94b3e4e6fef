"""Residual vector quantisation by Euclidean distance: EnCodec, SoundStream, Mimi and their line.

A codebook learns in one of two ways, a typed choice of the module:

- "ema": it is a running mean of what chose it, kept in `batch_stats` and moved by `train=True`
  calls alone; the loss holds the commitment of the encoder only (van den Oord et al. 2017,
  appendix A.1; as EnCodec, SoundStream and Mimi are trained).
- "gradient": it is a parameter, and the loss holds the pull of the codebook as well.

Either way `batch_stats` tracks how often codes are chosen (`cluster_size`) and the sum of what
chose them (`embed_sum`). All of it is float32.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from llmcodec_jax.codec.conv.layers import FOLDED, matmul
from llmcodec_jax.codec.quantizer import code_counts, used_levels

LEARNING = ("ema", "gradient")


class Quantised(NamedTuple):
    """What a residual quantiser says about latents [B, T, D]."""

    quantised: jax.Array  # float32 [B, T, D], straight-through to the latent
    codes: jax.Array  # int32 [B, T, Q], 0 on padded frames and on levels that are not used
    query: jax.Array  # float32 [B, T, Q, d], what each level searched with
    loss: jax.Array  # float32 [B], mean over used levels and the clip's valid frames


def search_columns(table: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What a search by distance multiplies and subtracts: rows [V, d] as columns [d, V], and half
    of each row's squared length [V]."""
    return table.T, 0.5 * jnp.sum(jnp.square(table), axis=-1)


def nearest_euclidean(query: jax.Array, columns: jax.Array, halves: jax.Array) -> jax.Array:
    """Index of the closest row, the lowest of equals: [B, T, d], search_columns -> int32 [B, T]."""
    score = matmul(query, columns) - halves
    # Two plain reductions vectorise on every backend; an argmax does not on CPUs.
    best = jnp.max(score, axis=-1, keepdims=True)
    index = jnp.arange(halves.shape[0], dtype=jnp.int32)
    return jnp.min(jnp.where(score == best, index, halves.shape[0] - 1), axis=-1)


class EuclideanLevel(nn.Module):
    """One codebook [V, d] searched by Euclidean distance."""

    codebook_size: int
    code_dim: int
    learning: str = "ema"
    decay: float = 0.99
    epsilon: float = 1e-5  # Laplace smoothing of the counts

    def setup(self):
        if self.learning not in LEARNING:
            raise ValueError(f"codebook learning {self.learning!r} is not one of {LEARNING}")
        shape = (self.codebook_size, self.code_dim)
        start = nn.initializers.variance_scaling(1.0, "fan_in", "uniform", in_axis=-1, out_axis=-2)
        self.cluster_size = self.variable(
            "batch_stats", "cluster_size", jnp.ones, (self.codebook_size,), jnp.float32
        )
        if self.learning == "gradient":
            self.codebook = self.param("codebook", start, shape, jnp.float32)
        else:
            self.mean = self.variable(
                "batch_stats",
                "codebook",
                lambda: start(self.make_rng("params"), shape, jnp.float32),
            )
        self.embed_sum = self.variable("batch_stats", "embed_sum", lambda: jnp.array(self.table()))

    def table(self) -> jax.Array:
        """The codebook [V, d]."""
        return jnp.asarray(self.codebook if self.learning == "gradient" else self.mean.value)

    def lookup(self, codes: jax.Array) -> jax.Array:
        """codes [...] -> [..., d]."""
        return self.table()[codes]

    def __call__(self, residual: jax.Array, mask: jax.Array, train: bool = False):
        """residual float32 [B, T, d], mask bool [B, T] -> (codes [B, T], chosen [B, T, d])."""
        codes = nearest_euclidean(jax.lax.stop_gradient(residual), *self._columns())
        codes = jnp.where(mask, codes, 0)
        chosen = self.lookup(codes)
        if train and not self.is_initializing():
            self._follow(jax.lax.stop_gradient(residual), codes, mask)
        return codes, chosen

    def _columns(self) -> tuple[jax.Array, jax.Array]:
        """search_columns of the codebook; folded, for they take longer than a frame's search."""
        if self.has_variable(FOLDED, "columns"):
            return self.get_variable(FOLDED, "columns")
        columns = search_columns(jax.lax.stop_gradient(self.table()))
        if self.is_mutable_collection(FOLDED) and not self.is_initializing():
            self.put_variable(FOLDED, "columns", columns)
        return columns

    def _follow(self, residual: jax.Array, codes: jax.Array, mask: jax.Array) -> None:
        """Moves the running statistics, and under "ema" the codebook, to this batch."""
        counts = code_counts(codes, mask, self.codebook_size)
        sums = jnp.zeros_like(self.embed_sum.value)
        sums = sums.at[codes].add(jnp.where(mask[..., None], residual, 0.0))
        rate = jnp.where(jnp.any(mask), 1 - self.decay, 0.0)
        size = self.cluster_size.value + rate * (counts - self.cluster_size.value)
        total = self.embed_sum.value + rate * (sums - self.embed_sum.value)
        self.cluster_size.value, self.embed_sum.value = size, total
        if self.learning == "ema":
            all_of = jnp.sum(size)
            smooth = (size + self.epsilon) / (all_of + self.codebook_size * self.epsilon) * all_of
            moved = total / jnp.maximum(smooth, self.epsilon)[:, None]
            self.mean.value = jnp.where(rate > 0, moved, self.mean.value)


class ResidualEuclidean(nn.Module):
    """Each level quantises what the levels before it left over; 1x1 projections around, if any.

    With `code_dim` other than `width` or `project`, bias-free projections `in_proj` [D, d] and
    `out_proj` [d, D] stand around the levels, as in Mimi.
    """

    width: int  # D
    codebook_size: int
    code_dim: int
    levels: int
    learning: str = "ema"
    commitment: float = 1.0
    decay: float = 0.99
    project: bool = False

    def setup(self):
        if self.project or self.code_dim != self.width:
            start = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
            self.in_proj = self.param("in_proj", start, (self.width, self.code_dim), jnp.float32)
            self.out_proj = self.param("out_proj", start, (self.code_dim, self.width), jnp.float32)
        else:
            self.in_proj = self.out_proj = None
        self.level = [
            EuclideanLevel(self.codebook_size, self.code_dim, self.learning, self.decay)
            for _ in range(self.levels)
        ]

    def _into(self, latent: jax.Array) -> jax.Array:
        latent = latent.astype(jnp.float32)
        return latent if self.in_proj is None else matmul(latent, self.in_proj)

    def _out(self, inside: jax.Array) -> jax.Array:
        return inside if self.out_proj is None else matmul(inside, self.out_proj)

    def __call__(
        self,
        latent: jax.Array,
        mask: jax.Array,
        levels: int | jax.Array | None = None,
        train: bool = False,
    ) -> Quantised:
        """latent [B, T, D], mask bool [B, T] -> Quantised.

        `levels`: how many are used, an int (fewer are computed then), int32 [B] (for each clip;
        0 is allowed: quantised to nothing) or None (all).
        """
        computed, used = used_levels(self.levels, levels)
        inside = self._into(latent)
        residual, total = inside, jnp.zeros_like(inside)
        codes, queries, per_frame = [], [], jnp.zeros(mask.shape, jnp.float32)
        for index, level in enumerate(self.level[:computed]):
            on = mask if used is None else mask & (index < used)[:, None]
            code, chosen = level(residual, on, train)
            per_frame = per_frame + jnp.where(on, self._level_loss(residual, chosen), 0.0)
            queries.append(residual)
            codes.append(code)
            kept = jnp.where(on[..., None], jax.lax.stop_gradient(chosen), 0.0)
            residual, total = residual - kept, total + kept
        depth = jnp.full(mask.shape[:1], computed) if used is None else jnp.minimum(used, computed)
        frames = jnp.maximum(jnp.sum(mask, axis=1), 1) * jnp.maximum(depth, 1)
        quantised = self._out(inside + jax.lax.stop_gradient(total - inside))
        return Quantised(
            quantised, jnp.stack(codes, -1), jnp.stack(queries, 2), jnp.sum(per_frame, 1) / frames
        )

    def _level_loss(self, residual: jax.Array, chosen: jax.Array) -> jax.Array:
        """Commitment, and for a codebook that is a parameter its pull; [B, T, d] -> [B, T]."""
        loss = self.commitment * jnp.square(residual - jax.lax.stop_gradient(chosen))
        if self.learning == "gradient":
            loss = loss + jnp.square(chosen - jax.lax.stop_gradient(residual))
        return jnp.mean(loss, axis=-1)

    def lookup(self, codes: jax.Array) -> jax.Array:
        """codes [B, T, q] with q <= levels -> quantised float32 [B, T, D]."""
        found = [self.level[q].lookup(codes[..., q]) for q in range(codes.shape[-1])]
        return self._out(functools.reduce(jnp.add, found))

    def table(self, level: int = 0) -> jax.Array:
        """The codebook of one level, float32 [V, d]."""
        return self.level[level].table()


class SplitResidual(nn.Module):
    """Two residual quantisers of the same latent, whose outputs add: semantic and acoustic (Mimi).

    The first `semantic` levels and the rest each have projections and residuals of their own
    (Defossez et al. 2024, section 3.3.3).
    """

    width: int
    codebook_size: int
    code_dim: int
    levels: int
    semantic: int = 1
    learning: str = "ema"
    commitment: float = 1.0
    decay: float = 0.99

    def setup(self):
        if not 0 < self.semantic < self.levels:
            raise ValueError(f"{self.semantic} semantic of {self.levels} levels")

        def part(levels: int) -> ResidualEuclidean:
            return ResidualEuclidean(
                self.width,
                self.codebook_size,
                self.code_dim,
                levels,
                self.learning,
                self.commitment,
                self.decay,
            )

        self.first = part(self.semantic)
        self.rest = part(self.levels - self.semantic)

    def __call__(
        self,
        latent: jax.Array,
        mask: jax.Array,
        levels: int | jax.Array | None = None,
        train: bool = False,
    ) -> Quantised:
        """As ResidualEuclidean; an int below `semantic` leaves semantic levels out."""
        computed, used = used_levels(self.levels, levels)
        counts = computed if used is None else used
        if isinstance(counts, int) and counts <= self.semantic:
            return self.first(latent, mask, counts, train)
        split = self.semantic
        if isinstance(counts, int):
            depths = (split, counts - split)
        else:
            depths = (jnp.minimum(counts, split), jnp.maximum(counts - split, 0))
        parts = (
            self.first(latent, mask, depths[0], train),
            self.rest(latent, mask, depths[1], train),
        )
        weights = [jnp.asarray(depth) / jnp.maximum(sum(depths), 1) for depth in depths]
        return Quantised(
            self._joined(parts, depths[1]),
            jnp.concatenate([part.codes for part in parts], axis=-1),
            jnp.concatenate([part.query for part in parts], axis=2),
            parts[0].loss * weights[0] + parts[1].loss * weights[1],
        )

    @staticmethod
    def _joined(parts, depth) -> jax.Array:
        """The sum of both; where no acoustic level is used its straight-through part is empty."""
        if isinstance(depth, int):
            return parts[0].quantised + parts[1].quantised
        return parts[0].quantised + jnp.where((depth > 0)[:, None, None], parts[1].quantised, 0.0)

    def lookup(self, codes: jax.Array) -> jax.Array:
        """codes [B, T, q] with q <= levels -> quantised float32 [B, T, D]."""
        quantised = self.first.lookup(codes[..., : self.semantic])
        if codes.shape[-1] > self.semantic:
            quantised = quantised + self.rest.lookup(codes[..., self.semantic :])
        return quantised

    def table(self, level: int = 0) -> jax.Array:
        """The codebook of one level, float32 [V, d]."""
        if level < self.semantic:
            return self.first.table(level)
        return self.rest.table(level - self.semantic)
