"""The Fourier transform in ONNX operators that every runtime has.

Bins of near-silent sound hold only what is left when equal samples cancel, and their angle is a
feature of AUV. A product with cosines leaves rounding errors there and so changes one code in a
hundred of 16-bit recordings; a fast transform cancels exactly, as the one does that JAX uses.
"""

from __future__ import annotations

import numpy as np

from llmcodec_jax.portable.graph import Graph, Value

Complex = tuple[Value, Value]


def forward(g: Graph, frames: Value, size: int) -> Complex:
    """Real frames [B, T, size] -> (real, imaginary) of the bins 0 to size / 2, [B, T, bins].

    Decimation in frequency: each stage turns four samples a quarter of the frame apart into one
    sample of each of four transforms of a quarter of the length. What is left when the length no
    longer divides by four is a product.
    """
    split, digits = size, 0
    real = g.op("Unsqueeze", frames, g.ints(2))
    x: Complex = (real, g.op("Mul", real, g.constant(0.0)))
    while split % 4 == 0:
        x = _stage(g, x, split)
        split, digits = split // 4, digits + 1
    angle = -2 * np.pi / split * np.outer(np.arange(split), np.arange(split))
    x = _times_matrix(g, x, np.cos(angle), np.sin(angle))
    order = g.constant(_positions(size, digits), np.int64)
    flat = g.ints(0, 0, -1)
    real, imaginary = (g.op("Gather", g.op("Reshape", p, flat), order, axis=2) for p in x)
    return real, imaginary


def _positions(size: int, digits: int) -> np.ndarray:
    """Where each bin 0 .. size / 2 stands among the outputs of the stages."""
    bins = np.arange(size // 2 + 1)
    group, rest = np.zeros_like(bins), bins
    for _ in range(digits):
        group, rest = 4 * group + rest % 4, rest // 4
    return group * (size // 4**digits) + rest


def _stage(g: Graph, x: Complex, size: int) -> Complex:
    """[B, T, G, size] -> [B, T, 4 G, size / 4]."""
    a, b, c, d = zip(*(_quarters(g, part) for part in x), strict=True)
    even, odd = _add(g, a, c), _subtract(g, a, c)
    other, turned = _add(g, b, d), _times_minus_i(g, _subtract(g, b, d))
    outputs = [
        _add(g, even, other), _add(g, odd, turned), _subtract(g, even, other),
        _subtract(g, odd, turned),
    ]  # fmt: skip
    twisted = [outputs[0]]
    for j in range(1, 4):
        cosine, sine = _circle(size, j * np.arange(size // 4))
        twisted.append(_times(g, outputs[j], g.constant(cosine), g.constant(-sine)))
    shape = g.ints(0, 0, -1, size // 4)
    parts = []
    for part in range(2):
        stacked = [g.op("Unsqueeze", value[part], g.ints(3)) for value in twisted]
        parts.append(g.op("Reshape", g.op("Concat", *stacked, axis=3), shape))
    return parts[0], parts[1]


def _circle(size: int, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of 2 pi steps / size, exactly symmetric, zero where it is."""
    quarter, rest = np.divmod(steps % size, size // 4)
    angle = 2 * np.pi * rest / size
    mirrored = 2 * np.pi * (size // 4 - rest) / size
    cosine = np.where(8 * rest > size, np.sin(mirrored), np.cos(angle))
    sine = np.where(8 * rest > size, np.cos(mirrored), np.sin(angle))
    turns = [(cosine, sine), (-sine, cosine), (-cosine, -sine), (sine, -cosine)]
    return tuple(np.choose(quarter, [turn[part] for turn in turns]) for part in range(2))


def _quarters(g: Graph, x: Value) -> list[Value]:
    return g.ops("Split", 4, x, axis=3)


def _add(g: Graph, x: Complex, y: Complex) -> Complex:
    return g.op("Add", x[0], y[0]), g.op("Add", x[1], y[1])


def _subtract(g: Graph, x: Complex, y: Complex) -> Complex:
    return g.op("Sub", x[0], y[0]), g.op("Sub", x[1], y[1])


def _times_minus_i(g: Graph, x: Complex) -> Complex:
    return x[1], g.op("Neg", x[0])


def _times(g: Graph, x: Complex, cosine: Value, sine: Value) -> Complex:
    return (
        g.op("Sub", g.op("Mul", x[0], cosine), g.op("Mul", x[1], sine)),
        g.op("Add", g.op("Mul", x[0], sine), g.op("Mul", x[1], cosine)),
    )


def _times_matrix(g: Graph, x: Complex, real: np.ndarray, imaginary: np.ndarray) -> Complex:
    a, b = g.constant(real), g.constant(imaginary)
    return (
        g.op("Sub", g.op("MatMul", x[0], a), g.op("MatMul", x[1], b)),
        g.op("Add", g.op("MatMul", x[0], b), g.op("MatMul", x[1], a)),
    )
