"""What a codec's tokens should know: a speech encoder's features as targets.

A linear map of the codec's latent, or of its first level, is drawn to the features of a teacher
(HuBERT's layers, Whisper's encoder), frame by frame as in Mimi (Défossez et al., arXiv 2410.00037)
or channel by channel over time as in SpeechTokenizer (Zhang et al., arXiv 2308.16692, equation 3).

Shapes: B clips, T frames, D channels of the teacher.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

KINDS = ("frame", "channel")
EPSILON = 1e-6


def distillation_loss(
    student: jax.Array, teacher: jax.Array, frame_mask: jax.Array, kind: str = "frame"
) -> jax.Array:
    """student, teacher [B, T, D], frame_mask bool [B, T] -> float32 [B]; no gradient to `teacher`.

    "frame": 1 - cos of each valid frame's channels, averaged over frames. "channel": -log sigmoid
    of each channel's cos over valid frames, averaged over channels. 0 for a clip without frames.
    Raises ValueError for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"distillation is by {' or '.join(KINDS)}, not {kind!r}")
    valid = frame_mask[..., None]
    student = jnp.where(valid, student.astype(jnp.float32), 0.0)
    teacher = jnp.where(valid, jax.lax.stop_gradient(teacher).astype(jnp.float32), 0.0)
    axis = 2 if kind == "frame" else 1
    cosine = _cosine(student, teacher, axis)
    if kind == "frame":
        count = jnp.maximum(frame_mask.sum(axis=1), 1)
        return jnp.sum(jnp.where(frame_mask, 1.0 - cosine, 0.0), axis=1) / count
    spoken = frame_mask.any(axis=1)
    return jnp.where(spoken, -jnp.mean(jax.nn.log_sigmoid(cosine), axis=1), 0.0)


def _cosine(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
    """Along one axis, with gradients that stay finite where a vector vanishes."""
    product = jnp.sum(a * b, axis=axis)
    norms = jnp.sum(a * a, axis=axis) * jnp.sum(b * b, axis=axis)
    return product * jax.lax.rsqrt(norms + EPSILON**2)


def at_frames(features: jax.Array, centres: jax.Array, frames: int, hop_seconds: float):
    """Teacher features [B, S, D] at the codec's frames [B, T, D], linear in time.

    `centres` float [S]: seconds at which the teacher's frames stand, evenly apart; the codec's
    stand at (t + 0.5) * hop_seconds. Before the first and after the last one they are held.
    """
    step = (centres[-1] - centres[0]) / max(len(centres) - 1, 1)
    place = ((jnp.arange(frames) + 0.5) * hop_seconds - centres[0]) / jnp.maximum(step, 1e-9)
    place = jnp.clip(place, 0.0, len(centres) - 1)
    low = jnp.floor(place).astype(jnp.int32)
    high = jnp.minimum(low + 1, len(centres) - 1)
    share = (place - low)[:, None]
    return features[:, low] * (1 - share) + features[:, high] * share
