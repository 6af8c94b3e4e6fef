"""Future-token prediction (method.md 4) with a fused linear cross-entropy.

Head k reads the LM state that has seen codes < t and predicts code t + k - 1. With K heads
and V codes the logits would be [B, T, K, V]; here they exist for one head and a few frames at
a time. The same sweep that computes the loss also computes its gradients, so nothing is ever
recomputed: three matrix products per head, as in the plain form, at a fraction of the memory.

Of a codec with several levels (lm/reading.py) a head holds a block of V rows for each, and a code
competes with those of its own level.

Shapes: B clips, T frames, K horizons, L levels, P positions of a frame, V codes of a level,
H language-model width.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from llmcodec_jax.ops.blocks import over_blocks
from llmcodec_jax.ops.placement import BATCH_AXES, WEIGHT_AXES, axes_in, current_mesh
from llmcodec_jax.types import Losses

ROWS = 512  # frames (over all clips) whose logits exist at once; more is faster, and larger
COLUMNS = 2048  # codes handled at once


class Targets(NamedTuple):
    """What every head is to predict, and whence."""

    labels: jax.Array  # int32 [K, L, B, T], at the frame whose state predicts it
    valid: jax.Array  # bool [K, L, B, T], both frames exist
    place: jax.Array  # int32 [K, L], the position of the frame whose state it is


def ftp_loss(
    hidden: jax.Array,
    heads: jax.Array,
    codes: jax.Array,
    frame_mask: jax.Array,
    mesh: Mesh | None = None,
) -> Losses:
    """Cross-entropy and accuracy of every horizon, as sums that add up over any split.

    hidden [B, T P, H]: hidden[:, s] has seen what stands before position s (hidden[:, 0] only the
    begin position). heads [K, L V, H], codes int [B, T] or [B, T, L], frame_mask bool [B, T] (a
    prefix of each clip). With one level and position: hidden[:, t] has seen codes < t.
    Returns "ftp/k" -> (sum of cross-entropy, codes) and "accuracy/ftp_k" -> (correct, codes) for
    k = 1..K, where both the state and the k-th code after what it has seen exist
    (`sources`). The paper's loss is sum_k w_k * sum_k / count_k with w from
    `lm.heads.horizon_weights` and counts over the whole batch. Gradients reach hidden and heads.
    On a `mesh` (default: the one in force) each device adds up its own clips' gradient; heads
    split by rows over the weight axes are gathered one at a time, and each one's gradient is
    exchanged once, not once per block.
    """
    batch, frames = frame_mask.shape
    horizons = heads.shape[0]
    places = hidden.shape[1] // frames
    wanted = future_targets(codes, frame_mask, horizons, places)
    states = hidden.reshape(batch, frames, places, -1).swapaxes(1, 2)
    mesh = mesh or current_mesh()
    clips = axes_in(mesh, BATCH_AXES, batch) if mesh else ()
    fused = _on_each_device(mesh, clips, heads.shape[1]) if clips else targets_cross_entropy
    sums, correct = fused(states, heads, wanted)
    counts = wanted.valid.sum((1, 2, 3)).astype(jnp.float32)
    losses: Losses = {}
    for k in range(horizons):
        losses[f"ftp/{k + 1}"] = (sums[k], counts[k])
        losses[f"accuracy/ftp_{k + 1}"] = (correct[k], counts[k])
    return losses


def future_targets(
    codes: jax.Array, frame_mask: jax.Array, horizons: int, places: int = 1
) -> Targets:
    """codes [B, T] or [B, T, L] and mask [B, T] -> Targets; with one level code t + k - 1 at t."""
    codes = codes if codes.ndim == 3 else codes[..., None]
    frames, levels = codes.shape[1:]
    place, ahead = sources(horizons, levels, places)

    def later(x, by):
        return jnp.pad(x, ((0, 0), (0, int(by))))[:, by : by + frames]

    labels = [[later(codes[..., q], by) for q, by in enumerate(row)] for row in ahead]
    valid = [[frame_mask & later(frame_mask, by) for by in row] for row in ahead]
    return Targets(jnp.array(labels, jnp.int32), jnp.array(valid), jnp.asarray(place))


def sources(horizons: int, levels: int, places: int) -> tuple[np.ndarray, np.ndarray]:
    """Whence head k + 1 predicts a level: (position in its frame, frames ahead), int32 [K, L].

    With a position for each level the K-th next code is that many positions on, of whatever level
    stands there; with one position a frame, each level of the frame K - 1 frames on.
    """
    ahead, level = np.arange(horizons)[:, None], np.arange(levels)
    place = (level - ahead) % places
    return place.astype(np.int32), ((place + ahead) // places).astype(np.int32)


def fused_linear_cross_entropy(
    hidden: jax.Array,
    heads: jax.Array,
    labels: jax.Array,
    valid: jax.Array,
    rows: int = ROWS,
) -> tuple[jax.Array, jax.Array]:
    """`targets_cross_entropy` of one level: hidden [B, T, H] @ heads[k]^T, heads [K, V, H], against
    labels[k], labels int32 and valid bool [K, B, T]."""
    place = jnp.zeros((len(heads), 1), jnp.int32)
    targets = Targets(labels[:, None], valid[:, None], place)
    return targets_cross_entropy(hidden[:, None], heads, targets, rows)


def targets_cross_entropy(
    states: jax.Array,
    heads: jax.Array,
    targets: Targets,
    rows: int = ROWS,
    split: tuple[str, ...] = (),
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of states @ heads[k]^T against the targets, never holding all logits.

    states [B, P, T, H], heads [K, L V, H] -> (sums float32 [K] over valid codes, number correct
    float32 [K], without gradient). Products run in the dtype of `states`, softmax and accumulation
    in float32. `rows` bounds how many frames' logits exist at once, on one device. Inside a
    shard_map, `split` names the mesh axes over which the heads' rows are divided.
    """
    batch, _, frames, _ = states.shape
    pieces = max(1, round(batch * frames / rows))
    chunk = -(-frames // pieces)
    return _fused((min(chunk, frames), split), states, heads, targets)


def _on_each_device(mesh: Mesh, clips: tuple[str, ...], codes: int):
    """The fused loss on each device's own clips; sums, and backwards gradients, are added up."""
    split = axes_in(mesh, WEIGHT_AXES, codes)

    def local(states, heads, targets):
        own = targets_cross_entropy(states, heads, targets, split=split)
        return jax.lax.psum(own, clips)

    wanted: Any = (P(None, None, clips), P(None, None, clips), P())
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P(clips), P(None, split or None), Targets(*wanted)),
        out_specs=(P(), P()),
        check_vma=False,  # the checker cannot follow a custom gradient's loop carries
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(static, states, heads, targets):
    return _each_head(*static, states, heads, targets, gradients=False)[:2]


def _fused_forward(static, states, heads, targets):
    sums, correct, d_states, d_heads = _each_head(*static, states, heads, targets, gradients=True)
    return (sums, correct), (d_states, d_heads, jnp.zeros((0,), states.dtype), heads[:0])


def _fused_backward(static, residuals, cotangents):
    d_states, d_heads, like_states, like_heads = residuals
    scale, _ = cotangents  # [K]: horizons are independent, so their gradients only scale
    total = jnp.einsum("k,kbpth->bpth", scale, d_states, preferred_element_type=jnp.float32)
    d_heads = (scale[:, None, None] * d_heads).astype(like_heads.dtype)
    return total.astype(like_states.dtype), d_heads, None


_fused.defvjp(_fused_forward, _fused_backward)


def _each_head(chunk, split, states, heads, targets: Targets, gradients: bool):
    """`_sweep`, with rows divided over the axes `split` gathered for one head at a time."""
    if not split:
        return _sweep(chunk, states, heads, targets, gradients)

    def one(_, own):
        head, targets = own
        head = jax.lax.all_gather(head.astype(states.dtype), split, tiled=True)
        head, targets = jax.tree.map(lambda x: x[None], (head, targets))
        sums, correct, d_states, d_head = _sweep(chunk, states, head, targets, gradients)
        if not gradients:
            return None, (sums[0], correct[0], None, d_head)
        d_head = jax.lax.psum_scatter(d_head[0], split, scatter_dimension=0, tiled=True)
        return None, (sums[0], correct[0], d_states[0], d_head)

    return jax.lax.scan(one, None, (heads, targets))[1]


def _sweep(chunk, states, heads, targets: Targets, gradients: bool):
    """Walks heads, levels and blocks of frames -> (sums [K], correct [K], d_states, d_heads).

    The gradients are those of each horizon's sum: d_states [K, B, P, T, H], d_heads [K, L V, H]
    float32, or None. Frames are cut along time so that a batch split over devices stays where it
    is. Where levels share a position, their gradients add up in float32.
    """
    horizons, levels, _, frames = targets.labels.shape
    places, size = states.shape[1], heads.shape[1] // levels
    blocks = -(-frames // chunk)
    later = ((0, 0), (0, 0), (0, 0), (0, blocks * chunk - frames))
    states = jnp.pad(states, (*later[:2], later[3], (0, 0)))
    labels, valid = (jnp.pad(x, later) for x in targets[:2])
    kept = jnp.float32 if levels > places else states.dtype
    d_states = jnp.zeros((horizons, *states.shape) if gradients else (0,), kept)
    d_heads = jnp.zeros(heads.shape if gradients else (0,), jnp.float32)

    def visit(index, carry):
        sums, correct, d_states, d_heads = carry
        k, rest = index // (levels * blocks), index % (levels * blocks)
        level, start = rest // blocks, (rest % blocks) * chunk
        place, first = targets.place[k, level], level * size
        block = (states.shape[0], 1, chunk, states.shape[-1])
        h = jax.lax.dynamic_slice(states, (0, place, start, 0), block)[:, 0]
        label = jax.lax.dynamic_slice_in_dim(labels[k, level], start, chunk, axis=1)
        weight = jax.lax.dynamic_slice_in_dim(valid[k, level], start, chunk, axis=1)
        weight = weight.astype(jnp.float32)
        logits = _logits(h, heads, k, first, size)
        lse = jax.nn.logsumexp(logits, axis=-1)
        picked = jnp.take_along_axis(logits, label[..., None], axis=-1)[..., 0]
        sums = sums.at[k].add(jnp.sum(weight * (lse - picked)))
        correct = correct.at[k].add(jnp.sum(weight * (jnp.argmax(logits, axis=-1) == label)))
        if gradients:
            d_h, d_heads = _gradients(logits, lse, label, weight, h, heads, k, first, d_heads)
            where = (k, 0, place, start, 0)
            shape = (1, d_h.shape[0], 1, *d_h.shape[1:])
            d_h = d_h.astype(kept).reshape(shape)
            if levels > places:
                d_h += jax.lax.dynamic_slice(d_states, where, shape)
            d_states = jax.lax.dynamic_update_slice(d_states, d_h, where)
        return sums, correct, d_states, d_heads

    zeros = jnp.zeros(horizons)
    steps = horizons * levels * blocks
    carry = (zeros, zeros, d_states, d_heads)
    sums, correct, d_states, d_heads = jax.lax.fori_loop(0, steps, visit, carry)
    return sums, correct, d_states[:, :, :, :frames] if gradients else None, d_heads


def _rows(heads, k, start, width):
    """heads[k, start : start + width], without a copy of the whole head."""
    return jax.lax.dynamic_slice(heads, (k, start, 0), (1, width, heads.shape[2]))[0]


def _logits(h, heads, k, first, size):
    """h @ heads[k, first : first + size]^T: float32 [B, chunk, size]."""

    def fill(logits, start, width):
        head = _rows(heads, k, first + start, width).astype(h.dtype)
        part = jnp.einsum("bth,vh->btv", h, head, preferred_element_type=jnp.float32)
        return jax.lax.dynamic_update_slice_in_dim(logits, part, start, axis=2)

    return over_blocks(size, COLUMNS, fill, jnp.zeros((*h.shape[:2], size)))


def _gradients(logits, lse, label, weight, h, heads, k, first, d_heads):
    """(gradient of h float32 [B, chunk, H], d_heads with that of its rows added in place)."""

    def add(carry, start, width):
        d_h, d_heads = carry
        part = jax.lax.dynamic_slice_in_dim(logits, start, width, axis=2)
        is_label = label[..., None] == start + jnp.arange(width)
        d_logits = weight[..., None] * (jnp.exp(part - lse[..., None]) - is_label)
        d_logits = d_logits.astype(h.dtype)
        head = _rows(heads, k, first + start, width).astype(h.dtype)
        d_h += jnp.einsum("btv,vh->bth", d_logits, head, preferred_element_type=jnp.float32)
        update = jnp.einsum("btv,bth->vh", d_logits, h, preferred_element_type=jnp.float32)
        total = _rows(d_heads, k, first + start, width) + update
        return d_h, jax.lax.dynamic_update_slice(d_heads, total[None], (k, first + start, 0))

    start = (jnp.zeros(h.shape, jnp.float32), d_heads)
    return over_blocks(logits.shape[-1], COLUMNS, add, start)
