"""report.html of a run: what was learned, to look at and to listen to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import soundfile
from matplotlib.figure import Figure

from llmcodec_jax.data.batches import Spoken
from llmcodec_jax.pages import html, plots
from llmcodec_jax.training import card, summary, terms
from llmcodec_jax.training.journal import read_rows
from llmcodec_jax.training.method import Method

PANELS = {
    "held-out mel distance": ["eval/mel"],
    "held-out STFT distance": ["eval/stft"],
    "held-out PESQ": ["eval/pesq"],
    "held-out STOI": ["eval/stoi"],
    "held-out code use": ["eval/code_usage"],
    "held-out code entropy (nats)": ["eval/code_entropy"],
    **terms.panels(),
    "future-token accuracy": [f"accuracy/ftp_{k}" for k in range(1, 11)],
    "bridge": ["accuracy/bridge", "accuracy/bridge_sampled", "schedule/temperature"],
    "codes in the bridge's relaxation": ["bridge/effective_codes"],
    "retrieval of the transcript": ["accuracy/retrieval"],
    "gradient norms": [
        "grad_norm/encoder",
        "grad_norm/decoder",
        "grad_norm/audio_embedding",
        "grad_norm/ftp_heads",
        "grad_norm/discriminators",
    ],
    "seconds of audio per second": ["speed/audio_seconds_per_second"],
}
HISTORY = 40  # evaluations in the table of all, evenly spaced


def _evaluations(rows: list[dict]) -> str:
    """What was measured at the start, at its best and now; behind a click, all of it."""
    found = summary.evaluations(rows)
    if not found:
        return html.paragraph("Nothing was evaluated.")
    names = {name for row in found for name in row if name.startswith("eval/")}
    order = [name for name in summary.EVALUATED if name in names] + sorted(
        names - summary.EVALUATED.keys()
    )
    shown = []
    for name in order:
        title, better = summary.EVALUATED.get(name, (name.partition("/")[2], ""))
        top = summary.best(found, name)
        best = html.with_note(top[name], f"step {top['step']}") if top else "–"
        values = html.strong(found[-1].get(name)), found[0].get(name), best
        shown.append([f"{title} {better}", *values])
    start, now = (f"step {row['step']}" for row in (found[0], found[-1]))
    picks = sorted({*np.linspace(0, len(found) - 1, min(HISTORY, len(found))).astype(int)})
    history = [[found[i]["step"], *(found[i].get(name) for name in order)] for i in picks[::-1]]
    header = [
        "step",
        *(" ".join(summary.EVALUATED.get(n, (n.partition("/")[2], ""))) for n in order),
    ]
    every = html.details(f"{len(picks)} of {len(found)} evaluations", html.table(header, history))
    return html.table(["", f"now, {now}", start, "best"], shown) + every


def _listening(workdir: Path, spoken: Sequence[Spoken]) -> str:
    """Every kept clip: the original, the first and the last reconstruction, and what is said."""
    markup = []
    for index, clips in enumerate(summary.kept_sounds(workdir)):
        sounds = {name: soundfile.read(path, dtype="float32") for name, path in clips.items()}
        rate = next(iter(sounds.values()))[1]
        wavs = {name: wav for name, (wav, _) in sounds.items()}
        if index < len(spoken):
            name, text = spoken[index]
            markup.append(html.quote(f"{text or 'no transcript'} ({name})"))
        markup.append(html.picture(plots.spectrograms(wavs, rate), chart=False))
        markup.append(html.cards(html.player(wav, rate, name) for name, wav in wavs.items()))
    return "".join(markup)


def _curves(rows: list[dict]) -> str:
    panels = plots.curves(rows, PANELS)
    return html.cards(html.picture(figure, title) for title, figure in panels)


def _next_steps(workdir: Path) -> str:
    return html.code(
        f"python -m llmcodec_jax.encode --codec {workdir} --input SPEECH_FOLDER --output tokens\n"
        f"python -m llmcodec_jax.decode --codec {workdir} --input tokens --output decoded\n"
        f"python -m llmcodec_jax.evaluate reconstruction --reference SPEECH_FOLDER "
        f"--codec {workdir}\n"
        f"tensorboard --logdir {workdir / 'tensorboard'}"
    )


def _skipped(skipped: dict) -> str:
    text = f"{skipped['read']} clips read, {skipped['count']} skipped."
    reasons = list(skipped["reasons"].items())[:20]
    return html.paragraph(text) + (html.table(["reason", "times"], reasons) if reasons else "")


def write(workdir: Path, method: Method, skipped: dict, spoken: Sequence[Spoken] = ()) -> Path:
    """Reads the run's rows and sounds and writes workdir/report.html."""
    rows = read_rows(workdir)
    bad = max((row.get("skipped") or 0 for row in rows), default=0)
    health = html.paragraph(
        f"{bad} updates were skipped for a loss or gradient that was not finite.",
        "warn" if bad else "note",
    )
    sections = [
        ("Listen", _listening(workdir, spoken)),
        ("Held-out evaluations", _evaluations(rows)),
        ("Curves", _curves(rows) + health),
        ("What happened when", html.picture(timetable(method))),
        ("Data", _skipped(skipped)),
        ("What to run next", _next_steps(workdir)),
    ]
    lead = summary.verdict(rows) if rows else f"{method.schedule.total_steps} steps."
    card.write(workdir, rows)
    first = html.links(card.neighbours(workdir, "report.html")) + summary.first_screen(
        workdir, rows
    )
    return html.write(workdir / "report.html", f"Run {workdir.name}", lead, sections, first)


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
        reaching = zip(lines.pop("ftp", [0.0] * len(steps)), gate, strict=True)
        lines["ftp (reaching the codec)"] = [w * g for w, g in reaching]
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
