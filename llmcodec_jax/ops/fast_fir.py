"""Convolutions over time with fewer products than taps ask for: the fast FIR algorithm, on CPUs.

With even and odd steps X0, X1 of a signal and even and odd taps H0, H1 of a kernel, three filters
of half the length give both phases of the output instead of four,

    even = H0 X1 + H1 X0',   odd = (H0 + H1) (X0 + X1) - H0 X1 - H1 X0,

(X0' one step on; Mou and Duhamel 1991, "Short-length FIR filters", section II), and each of the
three is split again while that saves more than its sums cost. The result differs from the plain
one by float32's rounding alone. Accelerators, whose matrix units outrun their memory, and types
with fewer bits keep the plain form.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from llmcodec_jax.ops.backend import on_cpu

WORTH = 288
"""Products saved for each output value from which a split pays: seven taps of 192 channels save so
many. Where the core multiplies at 36 GFLOP/s (AVX2) less would pay as well; where it does at 140
(AVX-512) such small splits take longer than they save."""
MANY = 512
"""Steps of all clips together from which a split pays: below, adding up the taps takes longer than
the products it saves. A stream of a few frames a call does little else than read its kernels."""


def plain(x: jax.Array, kernel: jax.Array, dilation: int, precision=None) -> jax.Array:
    """x [B, T + (K - 1) dilation, I], kernel [K, I, O] -> [B, T, O]."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1,),
        "VALID",
        rhs_dilation=(dilation,),
        dimension_numbers=("NWC", "WIO", "NWC"),
        precision=precision,
    )


def convolve(x: jax.Array, kernel: jax.Array, dilation: int = 1, precision=None) -> jax.Array:
    """As `plain`, in fewer products where that is faster.

    A split of K taps saves about K / 4 products of each of I channels; its sums are passes over
    memory, which take as long on a CPU as some hundred products. Nothing is split for less than
    WORTH products saved, or for fewer than MANY steps.
    """
    taps, inputs, _ = kernel.shape
    steps = x.shape[1] - (taps - 1) * dilation
    kept = (taps + (taps + 1) // 2) / 2
    clips = x.shape[0] if isinstance(x.shape[0], int) else 1  # an exported program's is a symbol
    few = steps < 2 * dilation * taps or clips * steps < MANY
    few = few or (taps - kept) * inputs < WORTH
    if few or x.dtype != jnp.float32 or not on_cpu():
        return plain(x, kernel, dilation, precision)
    return split(x, kernel, dilation, precision)


def split(x: jax.Array, kernel: jax.Array, dilation: int = 1, precision=None) -> jax.Array:
    """As `plain`, by three convolutions of half the taps over half the steps."""
    batch, length, inputs = x.shape
    taps, _, features = kernel.shape
    steps, even, odd = length - (taps - 1) * dilation, kernel[::2], kernel[1::2]
    pairs = -(-(steps + dilation) // (2 * dilation))  # of output phases, a phase of x before them
    need = (pairs + len(even)) * 2 * dilation
    x = jnp.pad(x, ((0, 0), (dilation, max(need - length - dilation, 0)), (0, 0)))[:, :need]
    x = x.reshape(batch, -1, 2, dilation, inputs)
    first, second = (x[:, :, i].reshape(batch, -1, inputs) for i in (0, 1))

    def filtered(x: jax.Array, kernel: jax.Array, pairs: int) -> jax.Array:
        wanted = (pairs + len(kernel) - 1) * dilation
        return convolve(x[:, :wanted], kernel, dilation, precision)

    a = filtered(second, even, pairs)
    b = filtered(first, odd, pairs + 1)
    both = even + jnp.pad(odd, ((0, len(even) - len(odd)), (0, 0), (0, 0)))
    c = filtered(first + second, both, pairs)
    before, after = c - a - b[:, : pairs * dilation], a + b[:, dilation:]
    y = jnp.stack([z.reshape(batch, pairs, dilation, features) for z in (before, after)], axis=2)
    return y.reshape(batch, -1, features)[:, dilation : dilation + steps]
