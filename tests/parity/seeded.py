"""Weights that any framework can make again: each tensor drawn from its own name."""

import math
import zlib

import numpy as np


def seeded_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 of `shape`; gains of norms are near one, matrices keep the size of a signal."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    noise = rng.standard_normal(shape).astype(np.float32)
    if name.endswith(("norm.weight", "original0", "weight_g")):
        return 1 + 0.1 * noise
    if len(shape) < 2:
        return 0.1 * noise
    return noise / np.float32(math.sqrt(math.prod(shape[1:])))


def seeded_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """name -> shape to name -> tensor."""
    return {name: seeded_tensor(name, tuple(shape)) for name, shape in shapes.items()}


def seeded_wav(samples: int, seed: int) -> np.ndarray:
    """float32 [N]: low-passed noise with a slow envelope."""
    rng = np.random.default_rng(seed)
    noise = np.convolve(rng.standard_normal(samples + 31), np.ones(32) / 8, "valid")
    return (0.2 * noise * np.sin(np.linspace(0, 9, samples)) ** 2).astype(np.float32)
