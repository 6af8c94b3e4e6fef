"""Both players' adversarial losses (method.md 6), as functions of feature lists and masks only.

`features` and `masks` are what `discriminators.Discriminators` returns: one list of [B, T', C]
maps per sub-discriminator, the last map being logits, with bool masks [B, T']. Each loss is
averaged over a clip's own valid patches, summed over sub-discriminators (as published), and
returned as (sum over clips, number of clips), so the mean over any sharding is that over clips.

Because nothing here touches parameters, both players share the forward passes: one
`jax.vjp(apply, params, wav)` of the discriminators on the decoded audio is pulled back once with
the cotangents of `discriminator_loss` (keep the parameters' part) and once with those of
`generator_loss` and `feature_matching_loss` (keep the waveform's part).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

KINDS = ("hinge", "lsgan")


def discriminator_loss(real, fake, masks, kind: str = "hinge") -> tuple[jax.Array, jax.Array]:
    """The discriminators' loss: real clips should score high, decoded clips low."""
    real_term, fake_term = {
        "hinge": (lambda x: jax.nn.relu(1 - x), lambda x: jax.nn.relu(1 + x)),
        "lsgan": (lambda x: jnp.square(x - 1), jnp.square),
    }[_checked(kind)]
    terms = [
        real_term(_float(r[-1])) + fake_term(_float(f[-1])) for r, f in zip(real, fake, strict=True)
    ]
    return _over_clips(terms, [kept[-1] for kept in masks])


def generator_loss(fake, masks, kind: str = "hinge") -> tuple[jax.Array, jax.Array]:
    """The codec's loss: decoded clips should score high."""
    term = {"hinge": jnp.negative, "lsgan": lambda x: jnp.square(x - 1)}[_checked(kind)]
    return _over_clips([term(_float(f[-1])) for f in fake], [kept[-1] for kept in masks])


def feature_matching_loss(real, fake, masks) -> tuple[jax.Array, jax.Array]:
    """L1 between hidden maps: mean over each map, summed over maps and sub-discriminators.

    That sum is the published normalisation (its weights 1.5 -> 1.0 belong to it); logits are not
    matched. The real side receives no gradient.
    """
    terms = [
        jnp.abs(_float(f) - jax.lax.stop_gradient(_float(r)))
        for reals, fakes in zip(real, fake, strict=True)
        for r, f in zip(reals[:-1], fakes[:-1], strict=True)
    ]
    return _over_clips(terms, [mask for kept in masks for mask in kept[:-1]])


def r1_penalty(
    discriminate: Callable, wav: jax.Array, key: jax.Array, gamma: float = 2.0, interval: int = 16
) -> tuple[jax.Array, jax.Array]:
    """gamma/2 * interval * mean over patches of ||d logit / d wav||^2, on real clips.

    `discriminate(wav) -> (features, masks)` with wav float32 [B, N]. A patch logit is one
    judgement, so its own squared gradient is what R1 penalises; averaging over patches keeps the
    penalty independent of the clip's length (summing them, as published, does not). One backward
    pass estimates the average without bias: logits are summed under random signs, whose cross
    terms vanish in expectation. `interval` makes up for applying it every `interval` steps only.
    """

    def signed_score(wav):
        features, masks = discriminate(wav)
        score = 0.0
        for index, (maps, kept) in enumerate(zip(features, masks, strict=True)):
            logits, mask = _float(maps[-1])[..., 0], kept[-1]
            signs = jax.random.rademacher(jax.random.fold_in(key, index), logits.shape, jnp.float32)
            patches = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
            score += jnp.sum(signs * logits * mask / jnp.sqrt(patches))
        return score

    # The gradient's squared length is the score's slope along the gradient. Held fixed as a
    # direction, that slope has half the length's derivative, and it is a forward derivative: what
    # is differentiated again are the network's own convolutions and not their transposes, whose
    # derivatives run several times slower on CPUs.
    wav = _float(wav)
    direction = jax.lax.stop_gradient(jax.grad(signed_score)(wav))
    _, slope = jax.jvp(signed_score, (wav,), (direction,))
    penalty = 2 * slope - jax.lax.stop_gradient(slope)
    return 0.5 * gamma * interval * penalty, jnp.float32(wav.shape[0])


def _over_clips(terms: list[jax.Array], masks: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Maps [B, T', C] -> (sum over clips of the sum of their masked means, clips)."""
    per_clip = 0.0
    for values, mask in zip(terms, masks, strict=True):
        elements = jnp.maximum(jnp.sum(mask, axis=1), 1) * values.shape[-1]
        per_clip += jnp.sum(values * mask[..., None], axis=(1, 2)) / elements
    return jnp.sum(per_clip), jnp.float32(terms[0].shape[0])


def _float(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


def _checked(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"the adversarial loss is one of {KINDS}, got {kind!r}")
    return kind
