"""Future-token prediction (method.md 4) with a fused linear cross-entropy.

Head k reads the LM state that has seen codes < t and predicts code t + k - 1. With K heads
and V codes the logits would be [B, T, K, V]; here they exist for one head and a few frames at
a time. The same sweep that computes the loss also computes its gradients, so nothing is ever
recomputed: three matrix products per head, as in the plain form, at a fraction of the memory.

Shapes: B clips, T frames, K horizons, V codes, H language-model width.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from llmcodec_jax.ops.blocks import over_blocks
from llmcodec_jax.ops.placement import BATCH_AXES, WEIGHT_AXES, axes_in, current_mesh
from llmcodec_jax.types import Losses

ROWS = 512  # frames (over all clips) whose logits exist at once; more is faster, and larger
COLUMNS = 2048  # codes handled at once


def ftp_loss(
    hidden: jax.Array,
    heads: jax.Array,
    codes: jax.Array,
    frame_mask: jax.Array,
    mesh: Mesh | None = None,
) -> Losses:
    """Cross-entropy and accuracy of every horizon, as sums that add up over any split.

    hidden [B, T, H]: hidden[:, t] has seen codes < t (hidden[:, 0] only the begin position).
    heads [K, V, H], codes int [B, T], frame_mask bool [B, T] (a prefix of each clip).
    Returns "ftp/k" -> (sum of cross-entropy, valid frames) and "accuracy/ftp_k" -> (correct,
    valid frames) for k = 1..K; t counts where frames t and t + k - 1 both exist. The paper's
    loss is sum_k w_k * sum_k / count_k with w from `lm.heads.horizon_weights` and counts over
    the whole batch. Gradients reach hidden and heads. On a `mesh` (default: the one in force)
    each device adds up its own clips' gradient; heads split by rows over the weight axes are
    gathered one at a time, and each one's gradient is exchanged once, not once per block.
    """
    horizons = heads.shape[0]
    labels, valid = future_labels(codes, frame_mask, horizons)
    mesh = mesh or current_mesh()
    clips = axes_in(mesh, BATCH_AXES, hidden.shape[0]) if mesh else ()
    fused = _on_each_device(mesh, clips, heads.shape[1]) if clips else fused_linear_cross_entropy
    sums, correct = fused(hidden, heads, labels, valid)
    counts = valid.sum((1, 2)).astype(jnp.float32)
    losses: Losses = {}
    for k in range(horizons):
        losses[f"ftp/{k + 1}"] = (sums[k], counts[k])
        losses[f"accuracy/ftp_{k + 1}"] = (correct[k], counts[k])
    return losses


def future_labels(codes: jax.Array, frame_mask: jax.Array, horizons: int):
    """codes and mask [B, T] -> (labels int32, valid bool), each [K, B, T]: code t + k - 1 at t."""
    frames = codes.shape[1]

    def ahead(x, k):
        return jnp.pad(x, ((0, 0), (0, k)))[:, k : k + frames]

    labels = jnp.stack([ahead(codes, k) for k in range(horizons)]).astype(jnp.int32)
    return labels, jnp.stack([frame_mask & ahead(frame_mask, k) for k in range(horizons)])


def fused_linear_cross_entropy(
    hidden: jax.Array,
    heads: jax.Array,
    labels: jax.Array,
    valid: jax.Array,
    rows: int = ROWS,
    split: tuple[str, ...] = (),
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of hidden @ heads[k]^T against labels[k], never holding all logits.

    hidden [B, T, H], heads [K, V, H], labels int32 and valid bool [K, B, T] -> (sums float32
    [K] over valid frames, number correct float32 [K], without gradient). Products run in the
    dtype of `hidden`, softmax and accumulation in float32. `rows` bounds how many frames'
    logits exist at once, on one device. Inside a shard_map, `split` names the mesh axes over
    which the heads' rows are divided.
    """
    batch, frames, _ = hidden.shape
    pieces = max(1, round(batch * frames / rows))
    chunk = -(-frames // pieces)
    return _fused((min(chunk, frames), split), hidden, heads, labels, valid)


def _on_each_device(mesh: Mesh, clips: tuple[str, ...], codes: int):
    """The fused loss on each device's own clips; sums, and backwards gradients, are added up."""
    split = axes_in(mesh, WEIGHT_AXES, codes)

    def local(hidden, heads, labels, valid):
        own = fused_linear_cross_entropy(hidden, heads, labels, valid, split=split)
        return jax.lax.psum(own, clips)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P(clips), P(None, split or None), P(None, clips), P(None, clips)),
        out_specs=(P(), P()),
        check_vma=False,  # the checker cannot follow a custom gradient's loop carries
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(static, hidden, heads, labels, valid):
    return _each_head(*static, hidden, heads, labels, valid, gradients=False)[:2]


def _fused_forward(static, hidden, heads, labels, valid):
    sums, correct, d_hidden, d_heads = _each_head(
        *static, hidden, heads, labels, valid, gradients=True
    )
    return (sums, correct), (d_hidden, d_heads, jnp.zeros((0,), heads.dtype))


def _fused_backward(static, residuals, cotangents):
    d_hidden, d_heads, like_heads = residuals
    scale, _ = cotangents  # [K]: horizons are independent, so their gradients only scale
    total = jnp.einsum("k,kbth->bth", scale, d_hidden, preferred_element_type=jnp.float32)
    d_heads = (scale[:, None, None] * d_heads).astype(like_heads.dtype)
    return total.astype(d_hidden.dtype), d_heads, None, None


_fused.defvjp(_fused_forward, _fused_backward)


def _each_head(chunk, split, hidden, heads, labels, valid, gradients: bool):
    """`_sweep`, with rows divided over the axes `split` gathered for one head at a time."""
    if not split:
        return _sweep(chunk, hidden, heads, labels, valid, gradients)

    def one(_, own):
        head, labels, valid = own
        head = jax.lax.all_gather(head.astype(hidden.dtype), split, tiled=True)
        args = (x[None] for x in (head, labels, valid))
        sums, correct, d_hidden, d_head = _sweep(chunk, hidden, *args, gradients)
        if not gradients:
            return None, (sums[0], correct[0], None, d_head)
        d_head = jax.lax.psum_scatter(d_head[0], split, scatter_dimension=0, tiled=True)
        return None, (sums[0], correct[0], d_hidden[0], d_head)

    return jax.lax.scan(one, None, (heads, labels, valid))[1]


def _sweep(chunk, hidden, heads, labels, valid, gradients: bool):
    """Walks heads and blocks of frames -> (sums [K], correct [K], d_hidden, d_heads or None).

    The gradients are those of each horizon's sum: d_hidden [K, B, T, H], d_heads [K, V, H].
    Frames are cut along time so that a batch split over devices stays where it is.
    """
    horizons, frames = heads.shape[0], hidden.shape[1]
    blocks = -(-frames // chunk)
    padding = blocks * chunk - frames
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    labels = jnp.pad(labels, ((0, 0), (0, 0), (0, padding)))
    valid = jnp.pad(valid, ((0, 0), (0, 0), (0, padding)))
    d_hidden = jnp.zeros((horizons, *hidden.shape) if gradients else (0,), hidden.dtype)
    d_heads = jnp.zeros(heads.shape if gradients else (0,), jnp.float32)

    def visit(index, carry):
        sums, correct, d_hidden, d_heads = carry
        k, start = index // blocks, (index % blocks) * chunk
        h = jax.lax.dynamic_slice_in_dim(hidden, start, chunk, axis=1)
        label = jax.lax.dynamic_slice_in_dim(labels[k], start, chunk, axis=1)
        weight = jax.lax.dynamic_slice_in_dim(valid[k], start, chunk, axis=1).astype(jnp.float32)
        logits = _logits(h, heads, k)
        lse = jax.nn.logsumexp(logits, axis=-1)
        picked = jnp.take_along_axis(logits, label[..., None], axis=-1)[..., 0]
        sums = sums.at[k].add(jnp.sum(weight * (lse - picked)))
        correct = correct.at[k].add(jnp.sum(weight * (jnp.argmax(logits, axis=-1) == label)))
        if gradients:
            d_h, d_heads = _gradients(logits, lse, label, weight, h, heads, k, d_heads)
            d_hidden = jax.lax.dynamic_update_slice(d_hidden, d_h[None], (k, 0, start, 0))
        return sums, correct, d_hidden, d_heads

    zeros = jnp.zeros(horizons)
    carry = (zeros, zeros, d_hidden, d_heads)
    sums, correct, d_hidden, d_heads = jax.lax.fori_loop(0, horizons * blocks, visit, carry)
    return sums, correct, d_hidden[:, :, :frames] if gradients else None, d_heads


def _rows(heads, k, start, width):
    """heads[k, start : start + width], without a copy of the whole head."""
    return jax.lax.dynamic_slice(heads, (k, start, 0), (1, width, heads.shape[2]))[0]


def _logits(h, heads, k):
    """h @ heads[k]^T: float32 [B, chunk, V]."""

    def fill(logits, start, width):
        head = _rows(heads, k, start, width).astype(h.dtype)
        part = jnp.einsum("bth,vh->btv", h, head, preferred_element_type=jnp.float32)
        return jax.lax.dynamic_update_slice_in_dim(logits, part, start, axis=2)

    size = heads.shape[1]
    return over_blocks(size, COLUMNS, fill, jnp.zeros((*h.shape[:2], size)))


def _gradients(logits, lse, label, weight, h, heads, k, d_heads):
    """(gradient of h [B, chunk, H], d_heads with that of heads[k] added in place)."""

    def add(carry, start, width):
        d_h, d_heads = carry
        part = jax.lax.dynamic_slice_in_dim(logits, start, width, axis=2)
        is_label = label[..., None] == start + jnp.arange(width)
        d_logits = weight[..., None] * (jnp.exp(part - lse[..., None]) - is_label)
        d_logits = d_logits.astype(h.dtype)
        head = _rows(heads, k, start, width).astype(h.dtype)
        d_h += jnp.einsum("btv,vh->bth", d_logits, head, preferred_element_type=jnp.float32)
        update = jnp.einsum("btv,bth->vh", d_logits, h, preferred_element_type=jnp.float32)
        total = _rows(d_heads, k, start, width) + update
        return d_h, jax.lax.dynamic_update_slice(d_heads, total[None], (k, start, 0))

    d_h, d_heads = over_blocks(
        heads.shape[1], COLUMNS, add, (jnp.zeros(h.shape, jnp.float32), d_heads)
    )
    return d_h.astype(h.dtype), d_heads
