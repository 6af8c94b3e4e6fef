"""Pictures of a run: the timetable, the curves, spectrograms side by side."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from llmcodec_jax.ops import dsp


def log_mel(wav: np.ndarray, sample_rate: int, bands: int = 80) -> np.ndarray:
    """float [N] -> log10 mel spectrogram [frames, bands] for looking at (25 ms windows)."""
    size, hop = sample_rate // 40, sample_rate // 100
    padded = np.pad(wav, (0, max(size - len(wav), 0)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop] * dsp.hann(size)
    power = np.abs(np.fft.rfft(frames, n=1024)) ** 2
    return np.log10(power @ dsp.mel_filterbank(sample_rate, 1024, bands) + 1e-6)


def spectrograms(wavs: dict[str, np.ndarray], sample_rate: int) -> Figure:
    """Named clips [N] above each other on one colour scale."""
    figure, axes = plt.subplots(
        len(wavs), 1, figsize=(8, 1.7 * len(wavs)), sharex=True, squeeze=False, layout="tight"
    )
    mels = {name: log_mel(wav, sample_rate) for name, wav in wavs.items()}
    top = max(mel.max() for mel in mels.values())
    for axis, (name, mel) in zip(axes[:, 0], mels.items(), strict=True):
        extent = (0, len(mel) / 100, 0, mel.shape[1])
        axis.imshow(
            mel.T,
            origin="lower",
            aspect="auto",
            extent=extent,
            vmin=top - 6,
            vmax=top,
            cmap="magma",
        )
        axis.set_ylabel(name)
        axis.set_yticks([])
    axes[-1, 0].set_xlabel("seconds")
    return figure


def mel_pair(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> np.ndarray:
    """Reference above reconstruction as pixels, uint8 [height, width, 3], for TensorBoard."""
    figure = spectrograms({"reference": reference, "codec": estimate}, sample_rate)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    plt.close(figure)
    return pixels


def curves(rows: list[dict], panels: dict[str, list[str]]) -> Figure:
    """Metrics against steps: {panel title: [metric names]}; empty panels are left out."""
    found = {
        title: [n for n in names if any(row.get(n) is not None for row in rows)]
        for title, names in panels.items()
    }
    found = {title: names for title, names in found.items() if names}
    columns = min(3, len(found))
    lines = -(-len(found) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.9 * columns, 2.7 * lines), squeeze=False, layout="tight"
    )
    for axis, (title, names) in zip(axes.flat, found.items(), strict=False):
        for name in names:
            points = [(r["step"], r[name]) for r in rows if r.get(name) is not None]
            marker = "o" if len(points) < 30 else None
            axis.plot(*zip(*points, strict=True), label=name.partition("/")[2], marker=marker, ms=3)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend(fontsize=7)
    for axis in axes.flat[len(found) :]:
        axis.axis("off")
    return figure
