"""Snake between a 2x upsampling and a 2x downsampling, so that its overtones do not alias.

As in BigVGAN (arXiv 2206.04658, section 3.3) and BigCodec: 12-tap Kaiser-windowed sinc filters,
clips held constant beyond their ends. The doubled signal is kept as its even and its odd steps,
which turns both filters into short sums of shifts and never interleaves anything.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax.codec.conv.layers import sine_squared

TAPS = 12


@functools.cache
def kaiser_sinc(ratio: int = 2, taps: int = TAPS) -> np.ndarray:
    """Low-pass filter of a `ratio`-fold resampling, unit sum, float32 [taps] (taps even).

    Kaiser's formulas for a transition band of 1.2 / ratio of the cut-off on either side.
    """
    cutoff, transition = 0.5 / ratio, 4 * 0.6 / ratio
    attenuation = 2.285 * (taps // 2 - 1) * np.pi * transition + 7.95
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    else:
        beta = 0.5842 * max(attenuation - 21, 0) ** 0.4 + 0.07886 * max(attenuation - 21, 0)
    time = np.arange(taps) - taps / 2 + 0.5
    taps_ = 2 * cutoff * np.kaiser(taps, beta) * np.sinc(2 * cutoff * time)
    return (taps_ / taps_.sum()).astype(np.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def correlate(x: jax.Array, taps: tuple[float, ...]) -> jax.Array:
    """y[t] = sum_k taps[k] x[t + k], alike for all channels: [B, T, C] -> [B, T - K + 1, C].

    A sum of shifts, and so is its gradient: XLA fuses both into one pass over the data.
    """
    x = jax.lax.optimization_barrier(x)  # else XLA computes x anew for every shift
    steps = x.shape[1] - len(taps) + 1
    return sum(x[:, k : k + steps] * jnp.asarray(tap, x.dtype) for k, tap in enumerate(taps))


def _correlate_forward(x, taps):
    return correlate(x, taps), None


def _correlate_backward(taps, _, g):
    side = len(taps) - 1
    return (correlate(jnp.pad(g, ((0, 0), (side, side), (0, 0))), taps[::-1]),)


correlate.defvjp(_correlate_forward, _correlate_backward)


def hold(x, first, last, length, left: int, right: int) -> jax.Array:
    """x [B, T, C] with `first` [B, 1, C] before it and `last` from each clip's `length` on."""
    if length is not None:
        x = jnp.where((jnp.arange(x.shape[1]) < length[:, None])[..., None], x, last)
    ends = jnp.repeat(first, left, axis=1), jnp.repeat(last, right, axis=1)
    return jnp.concatenate([ends[0], x, ends[1]], axis=1)


def last_step(x: jax.Array, length: jax.Array | None) -> jax.Array:
    """The last valid step of every clip: x [B, T, C] -> [B, 1, C]."""
    if length is None:
        return x[:, -1:]
    index = jnp.clip(length - 1, 0, x.shape[1] - 1)
    return jnp.take_along_axis(x, index[:, None, None], axis=1)


class AntiAliasedSnake(nn.Module):
    """x + sin^2(e^alpha x) / e^beta at twice the rate, one alpha and one beta per channel.

    Parameters: `alpha`, `beta` float32 [channels], both on a log scale.
    """

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, length: jax.Array | None = None):
        """x [B, T, channels], length int32 [B] or None -> (the same shape, length)."""
        shape = (self.channels,)
        alpha = self.param("alpha", nn.initializers.zeros, shape, jnp.float32)
        beta = self.param("beta", nn.initializers.zeros, shape, jnp.float32)
        frequency = jnp.exp(alpha).astype(x.dtype)
        gain = (1 / (jnp.exp(beta) + 1e-9)).astype(x.dtype)

        taps = [float(tap) for tap in kaiser_sinc()]
        even_taps, odd_taps = tuple(taps[1::2]), tuple(taps[0::2])  # by which half they read
        double = (
            tuple(2 * tap for tap in reversed(even_taps)),
            tuple(2 * tap for tap in reversed(odd_taps)),
        )
        held = hold(x, x[:, :1], last_step(x, length), length, 3, 3)
        even, odd = correlate(held[:, :-1], double[0]), correlate(held[:, 1:], double[1])

        even, odd = (u + gain * sine_squared(frequency * u) for u in (even, odd))
        first, last = even[:, :1], last_step(odd, length)
        even, odd = hold(even, first, last, length, 2, 3), hold(odd, first, last, length, 3, 2)
        return correlate(even, even_taps) + correlate(odd, odd_taps), length
