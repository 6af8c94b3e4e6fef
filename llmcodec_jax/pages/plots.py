"""Pictures of a run: the timetable, the curves, spectrograms side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from llmcodec_jax.ops import dsp


def literal(name: str) -> str:
    """A name as a figure shows it: no mathematics between dollars, no label that is hidden."""
    name = " ".join(str(name).encode("utf-8", "backslashreplace").decode().split())
    name = "".join(char for char in name if char.isprintable()).replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def robust_limits(lines: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """Limits of an axis that a few outliers do not decide; None where there are none.

    Outliers lie further than three times the interquartile range from a line's quartiles.
    """
    lows, highs, found = [], [], False
    for values in lines:
        values = np.asarray(values, float)
        low, high = np.percentile(values, [25, 75])
        reach = 3 * (high - low) or 0.1 * abs(high)
        inside = values[(values >= low - reach) & (values <= high + reach)]
        found |= len(inside) < len(values)
        lows.append(inside.min())
        highs.append(inside.max())
    margin = 0.05 * (max(highs) - min(lows))
    return (min(lows) - margin, max(highs) + margin) if found and margin > 0 else None


def log_mel(wav: np.ndarray, sample_rate: int, bands: int = 80) -> np.ndarray:
    """float [N] -> log10 mel spectrogram [frames, bands] for looking at (25 ms windows)."""
    size, hop = sample_rate // 40, sample_rate // 100
    n_fft = max(1024, 1 << (size - 1).bit_length())
    padded = np.pad(wav, (0, max(size - len(wav), 0)))
    power = np.abs(dsp.host_stft(padded, size, hop, n_fft)) ** 2
    return np.log10(power @ dsp.mel_filterbank(sample_rate, n_fft, bands) + 1e-6)


GREY = "#808080"
"""Reads on a light ground and on a dark one."""
ON_ANY_GROUND = dict.fromkeys(
    ("axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY
)


@plt.rc_context(ON_ANY_GROUND)
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
        axis.set_ylabel(literal(name))
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


def curves(rows: list[dict], panels: dict[str, list[str]]) -> Iterator[tuple[str, Figure]]:
    """Metrics against steps, a figure for each panel {title: [metric names]} that has any."""
    for title, names in panels.items():
        found = {
            name: [(r["step"], r[name]) for r in rows if r.get(name) is not None] for name in names
        }
        found = {name: points for name, points in found.items() if points}
        if not found:
            continue
        figure, axis = plt.subplots(figsize=(4.2, 2.8), layout="tight")
        for name, points in found.items():
            marker = "o" if len(points) < 30 else None
            axis.plot(*zip(*points, strict=True), label=name.partition("/")[2], marker=marker, ms=3)
        lines = [[value for _, value in points] for points in found.values()]
        if limits := robust_limits(lines):
            axis.set_ylim(limits)
            beyond = sum(not limits[0] <= v <= limits[1] for line in lines for v in line)
            title += f" ({beyond} points beyond)"
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if len(found) > 1:
            axis.legend(fontsize=7)
        yield title, figure
