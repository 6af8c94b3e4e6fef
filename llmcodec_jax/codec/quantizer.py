"""The factorised quantiser: search in few dimensions, one or more residual levels (method.md 1)."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax.types import CodecOutput, Search

COMMITMENT = 0.25
USAGE_DECAY = 0.99
EXACT = jax.lax.Precision.HIGHEST


def normalise(x: jax.Array) -> jax.Array:
    """x to unit length over the last axis; zeros stay zeros, with a gradient of zero.

    Such are the frames of digital silence in a fresh network without biases, and of padding.
    """
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    some = square > 1e-24
    return jnp.where(some, x / jnp.sqrt(jnp.where(some, square, 1.0)), 0.0)


def nearest(
    query: jax.Array, table: jax.Array, bounds: jax.Array | None = None, chunk: int = 4096
) -> jax.Array:
    """Index of the most similar row of `table` for each query, the lowest of equals.

    query float32 [B, T, d] and table [V, d], both of unit length; bounds int32 [B, 2] limits clip
    b to rows [lo, hi) -> int32 [B, T]. Holds [B, T, chunk] similarities at once, never [B, T, V].
    """
    size = table.shape[0]
    chunk = min(chunk, size)
    table = jnp.pad(table, ((0, -size % chunk), (0, 0))).reshape(-1, chunk, table.shape[1])
    if bounds is None:
        bounds = jnp.array([[0, size]], jnp.int32)
    low, high = (jnp.minimum(bounds, size)[:, i, None, None] for i in (0, 1))

    def visit(best, part):
        start, rows = part
        index = start + jnp.arange(chunk, dtype=jnp.int32)
        similarity = jnp.einsum("btd,vd->btv", query, rows, precision=EXACT)
        similarity = jnp.where((index >= low) & (index < high), similarity, -jnp.inf)
        # Two plain reductions vectorise on every backend; an argmax does not on CPUs.
        score = jnp.max(similarity, axis=-1)
        code = jnp.min(jnp.where(similarity == score[..., None], index, size - 1), axis=-1)
        better = score > best[0]
        return (jnp.where(better, score, best[0]), jnp.where(better, code, best[1])), None

    shape = query.shape[:2]
    worst = (jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32))
    starts = jnp.arange(table.shape[0], dtype=jnp.int32) * chunk
    (_, codes), _ = jax.lax.scan(visit, worst, (starts, table))
    return codes


def used_levels(total: int, levels: int | jax.Array | None) -> tuple[int, jax.Array | None]:
    """`levels` of encode -> (levels to compute, int32 [B] used by each clip or None for all).

    Raises ValueError for a number outside 1..total.
    """
    if levels is None:
        return total, None
    if isinstance(levels, int):
        if not 1 <= levels <= total:
            raise ValueError(f"{levels} levels asked of a codec with 1 to {total}")
        return levels, None
    return total, levels


def draw_levels(key: jax.Array, batch: int, levels: int, share: float) -> jax.Array:
    """Quantiser dropout: how many levels each clip uses in a training step, int32 [batch].

    The first `share` of the clips draw uniformly from 1 to `levels`, the others use all (Kumar
    et al. 2023, section 3.2; SoundStream draws for every clip, share 1).
    """
    drawn = jax.random.randint(key, (batch,), 1, levels + 1, jnp.int32)
    return jnp.where(jnp.arange(batch) < int(batch * share), drawn, levels)


class WeightNormDense(nn.Module):
    """y = x (g * v / |v|) + b with one g per output, the published parametrisation of a 1x1.

    `folded`: one `kernel` instead of its two factors, as weights are published for use.
    """

    inputs: int
    features: int
    folded: bool = False

    def setup(self):
        fan_in, shape = nn.initializers.lecun_normal(), (self.inputs, self.features)
        if self.folded:
            self.kernel = self.param("kernel", fan_in, shape, jnp.float32)
            self.bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            return
        self.direction = self.param("direction", fan_in, shape, jnp.float32)
        self.scale = self.param(
            "scale", lambda _: jnp.linalg.norm(self.direction, axis=0).astype(jnp.float32)
        )
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.folded:
            kernel = self.kernel
        else:
            kernel = self.direction * (self.scale / jnp.linalg.norm(self.direction, axis=0))
        return jnp.dot(x.astype(jnp.float32), kernel, precision=EXACT) + self.bias


class FactorisedLevel(nn.Module):
    """One codebook searched by cosine in `code_dim` dimensions. All float32."""

    width: int
    codebook_size: int
    code_dim: int
    chunk: int
    folded: bool = False  # its projections' weight norm (WeightNormDense)

    def setup(self):
        self.in_proj = WeightNormDense(self.width, self.code_dim, self.folded)
        self.out_proj = WeightNormDense(self.code_dim, self.width, self.folded)
        # The encoder ends in a norm, so fresh projections are about N(0, 1) as well.
        self.codebook = self.param(
            "codebook",
            nn.initializers.normal(1.0),
            (self.codebook_size, self.code_dim),
            jnp.float32,
        )

    def table(self) -> jax.Array:
        """Unit-length codebook rows [V, d]."""
        return normalise(self.codebook)

    def project(self, latent: jax.Array) -> jax.Array:
        """[B, T, D] -> search space, before normalisation [B, T, d]."""
        return self.in_proj(latent)

    def lookup(self, codes: jax.Array) -> jax.Array:
        """codes [B, T] -> [B, T, D]."""
        return self.out_proj(self.codebook[codes])

    def __call__(self, latent: jax.Array, mask: jax.Array, bounds: jax.Array | None, train: bool):
        """latent [B, T, D], mask bool [B, T] -> (quantised [B, T, D], codes [B, T], query
        [B, T, d], loss [B])."""
        projected = self.project(latent)
        query = normalise(projected)
        codes = nearest(*jax.lax.stop_gradient((query, self.table())), bounds, self.chunk)
        codes = jnp.where(mask, codes, 0)
        chosen = self.codebook[codes]
        commitment = jnp.square(projected - jax.lax.stop_gradient(chosen))
        learning = jnp.square(chosen - jax.lax.stop_gradient(projected))
        per_frame = jnp.mean(COMMITMENT * commitment + learning, axis=-1)
        frames = jnp.maximum(jnp.sum(mask, axis=1), 1)
        loss = jnp.sum(jnp.where(mask, per_frame, 0.0), axis=1) / frames
        self._count(codes, mask, train)
        straight_through = projected + jax.lax.stop_gradient(chosen - projected)
        return self.out_proj(straight_through), codes, query, loss

    def _count(self, codes: jax.Array, mask: jax.Array, train: bool) -> None:
        """Keeps the running share of each code in `batch_stats` while training from scratch."""
        if self.is_initializing():
            uniform = jnp.full((self.codebook_size,), 1 / self.codebook_size, jnp.float32)
            self.put_variable("batch_stats", "usage", uniform)
        elif train:
            counts = code_counts(codes, mask, self.codebook_size)
            usage = self.get_variable("batch_stats", "usage")
            self.put_variable("batch_stats", "usage", running_share(usage, counts))


class ResidualQuantizer(nn.Module):
    """Each level quantises what the levels before it left over."""

    width: int
    codebook_size: int
    code_dim: int
    levels: int
    chunk: int
    folded: bool = False

    def setup(self):
        self.level = [
            FactorisedLevel(self.width, self.codebook_size, self.code_dim, self.chunk, self.folded)
            for _ in range(self.levels)
        ]

    def __call__(
        self,
        latent,
        mask,
        bounds=None,
        train: bool = False,
        levels: int | jax.Array | None = None,
    ):
        """latent [B, T, D] -> (quantised [B, T, D], codes [B, T] or [B, T, Q], each level's
        query [B, T, Q, d], loss [B] summed over levels); `levels`: only that many of them, an int
        or int32 [B] for each clip."""
        computed, used = used_levels(self.levels, levels)
        residual, quantised, loss, codes, queries = latent, 0.0, 0.0, [], []
        for index, level in enumerate(self.level[:computed]):
            on = mask if used is None else mask & (index < used)[:, None]
            part, code, query, level_loss = level(residual, on, bounds, train)
            residual = residual - part
            kept = part if used is None else part * (index < used)[:, None, None]
            quantised, loss = quantised + kept, loss + level_loss
            codes.append(code)
            queries.append(query)
        codes = codes[0] if self.levels == 1 else jnp.stack(codes, -1)
        return quantised, codes, jnp.stack(queries, axis=2), loss

    def lookup(self, codes: jax.Array) -> jax.Array:
        """codes [B, T] or [B, T, Q] (fewer levels are allowed) -> quantised [B, T, D]."""
        codes = codes[..., None] if codes.ndim == 2 else codes
        found = [self.level[q].lookup(codes[..., q]) for q in range(codes.shape[-1])]
        return functools.reduce(jnp.add, found)

    def project(self, latent: jax.Array, codes: jax.Array) -> jax.Array:
        """What each level searched for, before normalisation: [B, T, D] -> [B, T, Q, d]."""
        codes = codes[..., None] if codes.ndim == 2 else codes
        projected = []
        for q, level in enumerate(self.level):
            projected.append(level.project(latent))
            latent = latent - level.lookup(codes[..., q])
        return jnp.stack(projected, axis=2)


def code_counts(codes: jax.Array, mask: jax.Array, codebook_size: int) -> jax.Array:
    """How often each code occurs on valid frames: codes, mask [B, T] -> float32 [V]."""
    return jnp.zeros((codebook_size,), jnp.float32).at[codes].add(mask.astype(jnp.float32))


def running_share(usage: jax.Array, counts: jax.Array) -> jax.Array:
    """Running share of each code [V] after a batch in which they occurred `counts` [V] times."""
    total = jnp.sum(counts)
    share = jnp.where(total > 0, counts / jnp.maximum(total, 1), usage)
    return usage + (1 - USAGE_DECAY) * (share - usage)


def revive_dead_codes(
    codebook: jax.Array,
    usage: jax.Array,
    candidates: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    threshold: float = 0.02,
) -> tuple[jax.Array, jax.Array]:
    """Moves codes that hardly anything chooses to where the encoder's outputs are.

    codebook [V, d]; usage [V], running share of each code; candidates [B, T, d], projected encoder
    outputs; mask bool [B, T]. A code is dead when its share is below `threshold` times the uniform
    share 1 / V; `threshold=inf` re-draws all codes, a data-driven start. Drawn with replacement and
    nudged apart, the same for the same key at any sharding. Returns (codebook, usage); revived
    codes restart at the uniform share, so they get time to find frames.
    """
    size = codebook.shape[0]
    valid = jnp.cumsum(mask.reshape(-1).astype(jnp.int32))
    draw_key, nudge_key = jax.random.split(key)
    rank = jnp.floor(jax.random.uniform(draw_key, (size,)) * valid[-1]).astype(jnp.int32)
    flat = candidates.reshape(-1, candidates.shape[-1])
    drawn = flat[jnp.clip(jnp.searchsorted(valid, rank + 1), 0, len(flat) - 1)]
    spread = jnp.linalg.norm(drawn, axis=-1, keepdims=True) / drawn.shape[-1] ** 0.5
    drawn = drawn + 0.01 * spread * jax.random.normal(nudge_key, drawn.shape)
    dead = (usage * size < threshold) & (valid[-1] > 0)
    return jnp.where(dead[:, None], drawn, codebook), jnp.where(dead, 1 / size, usage)


def grow_codebook(codebook: np.ndarray, size: int, seed: int = 0) -> np.ndarray:
    """A codebook [V, d] with `size` >= V rows that finds the same vectors, and finer ones.

    The first V rows are the old ones; the rest are copies of them in turn, each moved within its
    row's own cell: by a quarter of the distance to the nearest other row, in a random direction.
    """
    unit = codebook / np.maximum(np.linalg.norm(codebook, axis=1, keepdims=True), 1e-12)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -1)
    reach = np.linalg.norm(codebook - codebook[similarity.argmax(1)], axis=1, keepdims=True)
    parents = np.arange(len(codebook), size) % len(codebook)
    step = np.random.default_rng(seed).normal(size=(len(parents), codebook.shape[1]))
    step *= 0.25 * reach[parents] / np.linalg.norm(step, axis=1, keepdims=True)
    return np.concatenate([codebook, codebook[parents] + step]).astype(codebook.dtype)


class FactorisedCodec(nn.Module):
    """What a codec has of its `quantizer`, a ResidualQuantizer of its `levels`: search, revival."""

    def search(self, level: int = 0) -> Search:
        """One level's unit-length codebook, float32 [V, d]: `query @ table.T` is the search."""
        return Search(self.quantizer.level[level].table(), "cosine")

    def search_inputs(self, latent, codes) -> jax.Array:
        """What each level searched for, unnormalised, float32 [B, T, Q, d]: revival candidates."""
        return self.quantizer.project(latent, codes)

    def count_codes(self, batch_stats: dict, counts: jax.Array) -> dict:
        """Running shares of the codes after a batch, counts float32 [Q, V] -> new batch_stats.

        For a codec whose statistics stand still otherwise: `train=True` counts by itself.
        """
        usages = dict(batch_stats["quantizer"])
        for q in range(self.levels):
            name = f"level_{q}"
            usages[name] = {"usage": running_share(usages[name]["usage"], counts[q])}
        return {**batch_stats, "quantizer": usages}

    def revive(self, variables: dict, output: CodecOutput, key, threshold: float = 0.02) -> dict:
        """Revives the dead codes of every level from one batch's encoder output.

        `variables` = {"params", "batch_stats"} of this codec, `output` of the batch just seen.
        Pure: returns new variables. See `revive_dead_codes`.
        """
        candidates: Any = self.apply(variables, output.latent, output.codes, method="search_inputs")
        quantizer = dict(variables["params"]["quantizer"])
        usages = dict(variables["batch_stats"]["quantizer"])
        for q in range(self.levels):
            name = f"level_{q}"
            codebook, usage = revive_dead_codes(
                quantizer[name]["codebook"],
                usages[name]["usage"],
                candidates[:, :, q],
                output.frame_mask,
                jax.random.fold_in(key, q),
                threshold,
            )
            quantizer[name] = {**quantizer[name], "codebook": codebook}
            usages[name] = {"usage": usage}
        return {
            **variables,
            "params": {**variables["params"], "quantizer": quantizer},
            "batch_stats": {**variables["batch_stats"], "quantizer": usages},
        }
