"""Short-time Fourier analysis shared by the codec and the losses: float32, length-aware."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np


def hann(size: int) -> np.ndarray:
    """Periodic Hann window, float32 [size]."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)


def host_stft(wav: np.ndarray, size: int, hop: int, n_fft: int | None = None) -> np.ndarray:
    """Uncentred transform in numpy, for metrics and pictures: [..., N] -> [..., frames, bins]."""
    frames = np.lib.stride_tricks.sliding_window_view(wav, size, axis=-1)[..., ::hop, :]
    return np.fft.rfft(frames * hann(size), n_fft, axis=-1)


def reflect_pad(wav: jax.Array, length: jax.Array | None, left: int, right: int) -> jax.Array:
    """Pads every clip with its own reflection, so a clip's margins never depend on its batch.

    wav [B, N]; length int [B] or None (all N) -> [B, left + N + right]. Clip b occupies
    [left, left + length[b]), its reflected margins follow directly, zeros after that.
    Clips shorter than a margin are reflected back and forth, as numpy's "reflect" does.
    """
    samples = wav.shape[1]
    if length is None:
        length = jnp.full(wav.shape[:1], samples, jnp.int32)
    position = jnp.arange(-left, samples + right)[None, :]  # [1, left+N+right]
    length = length[:, None].astype(jnp.int32)
    period = jnp.maximum(2 * (length - 1), 1)
    folded = jnp.mod(position, period)
    index = jnp.minimum(folded, period - folded)  # triangle wave over [0, length - 1]
    index = jnp.clip(index, 0, jnp.maximum(length - 1, 0))
    padded = jnp.take_along_axis(wav, index, axis=1)
    return jnp.where(position < length + right, padded, 0.0)


def frame(wav: jax.Array, size: int, hop: int) -> jax.Array:
    """wav [B, N] -> [B, 1 + (N - size) // hop, size] overlapping frames."""
    frames = 1 + (wav.shape[1] - size) // hop
    if frames < 1:
        raise ValueError(f"{wav.shape[1]} samples hold no frame of {size}")
    if size % hop:
        index = np.arange(frames)[:, None] * hop + np.arange(size)[None, :]
        return wav[:, index]
    # Whole hops: shifted views of a [B, blocks, hop] reshape copy far faster than a gather.
    blocks = wav[:, : (frames + size // hop - 1) * hop].reshape(wav.shape[0], -1, hop)
    return jnp.concatenate([blocks[:, i : i + frames] for i in range(size // hop)], axis=-1)


def stft(wav: jax.Array, n_fft: int, hop: int) -> jax.Array:
    """Uncentred Hann STFT of padded audio: [B, N] -> complex64 [B, frames, n_fft//2 + 1]."""
    return jnp.fft.rfft(frame(wav.astype(jnp.float32), n_fft, hop) * hann(n_fft), axis=-1)


def centred_stft(wav: jax.Array, length: jax.Array | None, n_fft: int, hop: int) -> jax.Array:
    """Centred STFT with each clip's own reflection: [B, N] -> complex64 [B, 1 + N // hop, bins].

    Frames past 1 + length // hop are padding (`centred_frames` counts the valid ones).
    """
    return stft(reflect_pad(wav, length, n_fft // 2, n_fft // 2), n_fft, hop)


def centred_frames(length: jax.Array, hop: int) -> jax.Array:
    """Valid frames of `centred_stft` for clips of `length` samples."""
    return 1 + length // hop


def magnitude(spectrum: jax.Array, floor: float = 1e-12) -> jax.Array:
    """|X| with a finite gradient at silence: sqrt(max(|X|^2, floor))."""
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    return jnp.sqrt(jnp.maximum(power, floor))


def overlap_add(frames: jax.Array, hop: int) -> jax.Array:
    """frames [B, T, size] with size a multiple of hop -> [B, (T - 1) * hop + size]."""
    batch, count, size = frames.shape
    steps = size // hop
    parts = frames.reshape(batch, count, steps, hop)
    total = jnp.zeros((batch, count + steps - 1, hop), frames.dtype)
    for i in range(steps):
        total += jnp.pad(parts[:, :, i], ((0, 0), (i, steps - 1 - i), (0, 0)))
    return total.reshape(batch, -1)


@functools.lru_cache(maxsize=32)
def mel_filterbank(sample_rate: int, n_fft: int, bands: int, scale: str = "htk") -> np.ndarray:
    """Triangular mel filters, float32 [n_fft // 2 + 1, bands], 0 Hz to Nyquist.

    `scale="htk"`: HTK scale, peak 1 (the training losses, method.md 6). `scale="slaney"`: Slaney
    scale and area normalisation (librosa's default, the Codec-SUPERB metrics, method.md 8).
    """
    import librosa

    if scale not in ("htk", "slaney"):
        raise ValueError(f"the mel scale is 'htk' or 'slaney', got {scale!r}")
    htk = scale == "htk"
    filters = librosa.filters.mel(
        sr=sample_rate,
        n_fft=n_fft,
        n_mels=bands,
        htk=htk,
        norm=None if htk else "slaney",
        dtype=np.float32,
    )
    return np.ascontiguousarray(filters.T)
