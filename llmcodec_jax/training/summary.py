"""Is the run any good? Its headline numbers, before and after, and one plot: a first screen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import soundfile

from llmcodec_jax.pages import html

EVALUATED = {
    "eval/mel": ("mel distance", "↓"),
    "eval/stft": ("STFT distance", "↓"),
    "eval/pesq": ("PESQ, 1 to 4.6", "↑"),
    "eval/stoi": ("STOI, 0 to 1", "↑"),
    "eval/code_usage": ("codes in use, share", "↑"),
    "eval/code_entropy": ("code entropy, nats", "↑"),
    "eval/vq": ("quantiser loss", "↓"),
}
"""Held-out values in the order they are read: (name and unit, which way is better)."""
HEADLINES = ("eval/mel", "eval/stoi", "eval/pesq", "eval/code_usage")
SETTLED = 0.02  # a relative change of the mel distance that is none to speak of


def evaluations(rows: Sequence[dict]) -> list[dict]:
    """The rows of held-out evaluations."""
    return [row for row in rows if "eval/mel" in row]


def best(found: Sequence[dict], name: str) -> dict | None:
    """The row in which a metric is best, None where none has it or no way is better."""
    known = [row for row in found if row.get(name) is not None]
    better = EVALUATED.get(name, ("", ""))[1]
    if not known or not better:
        return None
    return (min if better == "↓" else max)(known, key=lambda row: row[name])


def verdict(rows: Sequence[dict]) -> str:
    """A sentence or two: how far the mel distance fell, where it was best, does it still fall."""
    found = evaluations(rows)
    if not found:
        return "Nothing was evaluated."
    start, now = (_number(row["eval/mel"]) for row in (found[0], found[-1]))
    use, step = _number(found[-1].get("eval/code_usage")), found[-1]["step"]
    if len(found) == 1:
        return f"Held-out mel distance {now:.3g} at step {step}, code use {use:.0%}."
    said = (
        f"{step} steps; held-out mel distance {start:.3g} -> {now:.3g} "
        f"({1 - now / start:.0%} lower), code use {use:.0%}."
    )
    top = best(found, "eval/mel")
    if top is not None and top["eval/mel"] < (1 - SETTLED) * now:
        return f"{said} It was best at step {top['step']} ({top['eval/mel']:.3g})."
    quarter = [row for row in found if row["step"] <= 0.75 * step]
    if len(found) > 3 and quarter:
        fell = 1 - now / _number(quarter[-1]["eval/mel"])
        if fell > SETTLED:
            return (
                f"{said} It still falls: {fell:.0%} over the last quarter; more steps would help."
            )
        return f"{said} It has settled: {fell:.1%} over the last quarter."
    return said


def first_screen(workdir: Path, rows: Sequence[dict]) -> str:
    """Headline numbers, one clip before and after, the mel distance against steps."""
    found = evaluations(rows)
    if not found:
        return ""
    first, last = found[0], found[-1]
    items = []
    for name in HEADLINES:
        title, better = EVALUATED[name]
        if any(row.get(name) is not None for row in found):
            note = f"{html.number(first.get(name))} at step {first['step']}"
            items.append((f"{title}\N{NO-BREAK SPACE}{better}", last.get(name), note))
    plot = html.picture(mel_plot(rows))
    sounds = before_and_after(workdir)
    return html.tiles(items) + (html.halves(html.players(sounds), plot) if sounds else plot)


def mel_plot(rows: Sequence[dict]) -> plt.Figure:
    """Held-out mel distance against steps; training's, while there is but one evaluation."""
    name = "eval/mel" if len(evaluations(rows)) > 1 else "loss/mel"
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    figure, axis = plt.subplots(figsize=(5.2, 2.5), layout="tight")
    if points:
        axis.plot(*zip(*points, strict=True), marker="o" if len(points) < 30 else None, ms=3)
    what = "held-out mel distance" if name == "eval/mel" else "mel loss in training"
    axis.set_title(f"{what} (lower is better)", fontsize=10)
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
    return figure


def kept_sounds(workdir: Path) -> Iterator[dict[str, Path]]:
    """Every clip that was kept: {"original", first step, last step} -> file; what is there."""
    place = workdir / "heldout"
    folders = sorted(path for path in place.iterdir() if path.is_dir()) if place.is_dir() else []
    if not folders:
        return
    for index in range(len(list(folders[-1].glob("reference-*.flac")))):
        clips = {"original": folders[-1] / f"reference-{index}.flac"}
        for folder in (folders[0], folders[-1]):
            clips[f"step {int(folder.name)}"] = folder / f"codec-{index}.flac"
        yield {name: path for name, path in clips.items() if path.is_file()}


def before_and_after(workdir: Path) -> list[str]:
    """Players of the first kept clip."""
    clips = next(kept_sounds(workdir), {})
    sounds = {name: soundfile.read(path, dtype="float32") for name, path in clips.items()}
    return [html.player(wav, rate, name) for name, (wav, rate) in sounds.items()]


def _number(value: float | None) -> float:
    """A metric out of a row, where null stands for what was not finite."""
    return math.nan if value is None else value
