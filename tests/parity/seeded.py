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


def codec_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 weights for the published tensor `name`: sizes that keep signals near unit scale."""
    shape = tuple(shape)
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    last = name.rsplit(".", 1)[-1]
    if last in ("inited", "initted", "initialized"):
        return np.ones(shape, np.float32)
    if last in ("cluster_size", "cluster_usage"):
        return (1 + np.abs(draw)).astype(np.float32)
    if last in ("embed", "embed_avg") or "codebook" in name or ".vq.embedding.w" in name:
        return draw.astype(np.float32)
    if last == "weight_g":
        return (1.4 + 0.1 * draw).astype(np.float32)  # ELU takes away what is above one
    if last == "original0" or (len(shape) < 2 and last in ("weight", "scale", "gamma")):
        return (1 + 0.1 * draw).astype(np.float32)
    if last == "weight" and name.endswith(("scale.weight", "embed_scale")):
        return (1 + 0.1 * draw).astype(np.float32)  # rows of an adaptive norm
    if len(shape) < 2 or name.endswith("shift.weight"):
        return (0.03 * draw).astype(np.float32)
    fan_in = np.prod(shape[1:])
    return (draw / np.sqrt(fan_in)).astype(np.float32)


def codec_wav(seconds: float, rate: int, clips: int = 1) -> np.ndarray:
    """Noise under slow envelopes with a few gliding tones, float32 [clips, seconds * rate]."""
    draws = np.random.RandomState(7)
    time = np.arange(round(seconds * rate)) / rate
    clip = []
    for index in range(clips):
        tones = sum(
            np.sin(2 * np.pi * time * (draws.uniform(80, 2000) + 40 * np.sin(time * index)))
            for _ in range(5)
        )
        level = 0.3 + np.square(np.sin(2 * np.pi * draws.uniform(1, 3) * time))
        clip.append(level * (0.08 * tones + 0.1 * draws.standard_normal(len(time))))
    return np.stack(clip).astype(np.float32)
