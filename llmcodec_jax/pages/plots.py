"""Pictures of a run: the timetable, the curves, spectrograms side by side."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from llmcodec_jax.ops import dsp
from llmcodec_jax.training.method import Method


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


def timetable(method: Method) -> Figure:
    """What happens when: phases as bars, loss weights, learning rates and temperature as lines."""
    schedule = method.schedule
    steps = np.unique(np.linspace(0, schedule.total_steps - 1, 400).round())
    figure, axes = plt.subplots(3, 1, figsize=(11, 8), sharex=True, layout="tight")
    parts = ("codec", "discriminator", "lm")
    for row, part in enumerate(parts):
        for first, _ in schedule.phases():
            if getattr(method.phase(first), part):
                axes[0].barh(row, schedule.total_steps - first, left=first, color=f"C{row}")
                break
    axes[0].set_title(f"{schedule.total_steps} steps", fontsize=10)
    axes[0].set_yticks(range(3), ["codec learns", "discriminators", "LM branch"])
    weights = [method.weights.at(step, schedule) for step in steps]
    gate = [float(schedule.codec_gate(step)) for step in steps]
    lines = {name: [float(w[name]) for w in weights] for name in weights[0]}
    if method.lm:
        lines["ftp (reaching the codec)"] = [
            w * g for w, g in zip(lines.pop("ftp"), gate, strict=True)
        ]
        temperature = [float(schedule.temperature(step)) for step in steps]
        axes[1].plot(steps, temperature, "k:", label="bridge temperature")
    for name, values in lines.items():
        if max(values) > 0:
            axes[1].plot(steps, values, label=name)
    axes[1].set_ylabel("loss weight")
    for group in (*method.groups, method.discriminator_group):
        rates = [float(group.rate(step, schedule)) for step in steps]
        axes[2].plot(steps, rates, label=group.name)
    axes[2].set(ylabel="learning rate", yscale="log", xlabel="step")
    for axis in axes[1:]:
        axis.legend(fontsize=7, ncols=2, loc="center left", bbox_to_anchor=(1, 0.5))
        axis.grid(alpha=0.3)
    return figure


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
