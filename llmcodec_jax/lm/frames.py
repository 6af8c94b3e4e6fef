"""Generation of whole frames: one pass of the decoder draws a code of every level.

Levels stand at one position, each later than the first by its delay: with none they are drawn
side by side, not knowing of each other; with 0, 1, 2, ... each knows the ones before it, as in
MusicGen (arXiv 2306.05284). What `start` and `extend` do is what those of `generate` do.

Ids: those of level q are [q V, (q + 1) V), then the marks; a level that has nothing has id -1.

Shapes: B items, S prompt positions, Q levels, V codes of a level, R rows, H width, N frames.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from llmcodec_jax.lm.generate import Writer, advance, init_cache, product, until_stopped
from llmcodec_jax.lm.sampling import Sampling, draw, probabilities


@flax.struct.dataclass
class Levels:
    """How levels stand at a position."""

    size: int = flax.struct.field(pytree_node=False)  # V
    delays: tuple[int, ...] = flax.struct.field(pytree_node=False)  # [Q], 0 first, ascending
    end: int = flax.struct.field(pytree_node=False)  # id of the mark that ends

    @property
    def longest(self) -> int:
        """Positions that the last level is late by."""
        return self.delays[-1]


@flax.struct.dataclass
class FrameProgress:
    """Where a batch stands: `hidden` has seen all positions before `steps`."""

    cache: dict[str, jax.Array]
    hidden: jax.Array  # [B, H]
    position: jax.Array  # int32 [B], where the next one stands
    steps: jax.Array  # int32 [B], positions written so far
    frames: jax.Array  # int32 [B, D + N, Q], the prompt's last D frames (-1: none), then its own
    length: jax.Array  # int32 [B], frames of the whole: known once the first level has ended
    ended: jax.Array  # bool [B], by itself
    stopped: jax.Array  # bool [B]
    seen: jax.Array  # bool [B, R], codes written so far
    keys: jax.Array  # one random key an item

    @property
    def passes(self) -> jax.Array:
        """Of the decoder, int32 [B]."""
        return self.steps


def sum_rows(embedding: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows [R, H] of ids [..., Q] added up -> [..., H]; -1, and R and above, add nothing."""
    inside = (ids >= 0) & (ids < len(embedding))
    rows = embedding[jnp.clip(ids, 0, len(embedding) - 1)]
    return jnp.where(inside[..., None], rows, 0).sum(-2)


def level_heads(head: jax.Array, levels: int, size: int) -> jax.Array:
    """Rows [Q V + marks, H] -> [Q, V + marks, H]: each level's codes, and the marks."""
    own = head[: levels * size].reshape(levels, size, -1)
    marks = jnp.broadcast_to(head[levels * size :], (levels, *head[levels * size :].shape))
    return jnp.concatenate([own, marks], axis=1)


@functools.partial(jax.jit, static_argnames=("limit", "levels"))
def start(
    writer: Writer,
    levels: Levels,
    prompt: jax.Array,
    lengths: jax.Array,
    before: jax.Array,
    keys: jax.Array,
    limit: int,
) -> FrameProgress:
    """Reads prompts [B, S, H] embeddings, right-padded, of `lengths` int [B] (at least one).

    before: int32 [B, D, Q], ids of the frames that are continued, the last D of them, D the
    longest delay; -1 where there are none. keys: [B] random keys. limit: frames N at most.
    """
    batch, size, _ = prompt.shape
    slots = size + limit + levels.longest
    cache = init_cache(writer.config, batch, slots, writer.params["embed"]["embedding"].dtype)
    positions = jnp.broadcast_to(jnp.arange(size), (batch, size))
    hidden, cache = advance(writer.config, writer.params, prompt, positions, cache, writer.lora)
    none = jnp.full((batch, limit, len(levels.delays)), -1, jnp.int32)
    return FrameProgress(
        cache=cache,
        hidden=jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0],
        position=jnp.asarray(lengths, jnp.int32),
        steps=jnp.zeros(batch, jnp.int32),
        frames=jnp.concatenate([before, none], axis=1),
        length=jnp.full(batch, limit, jnp.int32),
        ended=jnp.zeros(batch, bool),
        stopped=jnp.zeros(batch, bool),
        seen=jnp.zeros((batch, len(writer.embedding)), bool),
        keys=keys,
    )


@functools.partial(jax.jit, donate_argnums=2, static_argnames="levels")
def extend(
    writer: Writer, levels: Levels, progress: FrameProgress, sampling: Sampling, passes, limits
) -> FrameProgress:
    """Up to `passes` positions more; an item stops where it ends, and at its limit of frames."""

    table = _table(writer, levels)
    step = functools.partial(_step, writer, levels, table, sampling=sampling, limits=limits)
    return until_stopped(step, progress, passes)


def complete(progress: FrameProgress, levels: Levels) -> jax.Array:
    """Frames that every level of has been written, int32 [B]."""
    return jnp.clip(progress.steps - levels.longest, 0, progress.length)


class Table(NamedTuple):
    """What each level may write, the same at every position."""

    heads: jax.Array  # float32 [Q, V + marks, H]
    ids: jax.Array  # int32 [Q, V + marks], as rows are numbered
    allowed: jax.Array  # bool [Q, V + marks], which of them may stand there


def _step(
    writer: Writer, levels: Levels, table: Table, progress: FrameProgress, sampling, limits
) -> FrameProgress:
    """One position: every level draws the code that it is late with, and the sum is read."""
    delays, late = jnp.array(levels.delays), levels.longest
    batch, places = jnp.arange(len(progress.steps))[:, None], jnp.arange(len(delays))
    length = jnp.minimum(progress.length, limits)
    frame = progress.steps[:, None] - delays  # [B, Q], which one each level is at
    drawn = _draw(table, progress, sampling)
    ends = (drawn[:, 0] == levels.end) & (progress.steps < length)
    length = jnp.where(ends, progress.steps, length)
    ended = progress.ended | ends
    known = progress.frames[batch, jnp.clip(frame + late, 0), places]
    over = jnp.where((frame == length[:, None]) & ended[:, None], levels.end, -1)
    writes = (frame >= 0) & (frame < length[:, None])
    ids = jnp.where(writes, drawn, jnp.where(frame < 0, known, over))
    # What stands past the end of the buffer is dropped, and so is what a stopped item goes on to.
    kept = writes & ~progress.stopped[:, None]
    place = jnp.where(kept, frame + late, progress.frames.shape[1])
    frames = progress.frames.at[batch, place, places].set(ids, mode="drop")
    row = jnp.where(kept, ids, progress.seen.shape[1])
    embeds = sum_rows(writer.embedding, ids)[:, None]
    hidden, cache = advance(
        writer.config,
        writer.params,
        embeds,
        progress.position[:, None],
        progress.cache,
        writer.lora,
    )
    going = ~progress.stopped
    steps = progress.steps + going
    return FrameProgress(
        cache=cache,
        hidden=hidden[:, 0],
        position=progress.position + going,
        steps=steps,
        frames=frames,
        length=length,
        ended=ended,
        stopped=progress.stopped | (steps >= length + late),
        seen=progress.seen.at[batch, row].set(True, mode="drop"),
        keys=progress.keys,
    )


def _table(writer: Writer, levels: Levels) -> Table:
    count, size = len(levels.delays), levels.size
    heads = level_heads(writer.heads[0].astype(jnp.float32), count, size)
    marks = heads.shape[1] - size
    own = jnp.arange(count)[:, None] * size + jnp.arange(size)
    shared = jnp.broadcast_to(count * size + jnp.arange(marks), (count, marks))
    ids = jnp.concatenate([own, shared], axis=1)
    return Table(heads, ids, writer.allowed[jnp.arange(count)[:, None], ids])


def _draw(table: Table, progress: FrameProgress, sampling) -> jax.Array:
    """One id a level [B, Q], each among its own codes; the first may end."""
    logits = product(progress.hidden, table.heads).reshape(-1, *table.ids.shape)
    logits = jnp.where(table.allowed, logits, -jnp.inf)
    found = probabilities(logits, sampling, progress.seen[:, table.ids])
    keys = jax.vmap(jax.random.fold_in)(progress.keys, progress.steps)
    keys = jax.vmap(lambda key: jax.random.split(key, len(table.ids)))(keys)
    place = jax.vmap(jax.vmap(draw))(keys, found)
    return jnp.take_along_axis(table.ids[None], place[:, :, None], axis=2)[:, :, 0]
