"""Any number of codecs side by side: `report.json` and one self-contained page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from llmcodec_jax import audio, page, pictures
from llmcodec_jax.evaluation.codec_superb import METRICS
from llmcodec_jax.evaluation.reconstruction import EvaluationError

KINDS: dict[str, Callable[[dict], bool]] = {
    "reconstruction": lambda r: "mel" in r.get("mean", {}) and "categories" in r,
    "token_lm": lambda r: "small_lm" in r,
    "salmon": lambda r: "parts" in r,
    "consistency": lambda r: "reencoded" in r.get("mean", {}),
}
BETTER = {"mel": "↓", "stft": "↓", "waveform": "↓", "pesq": "↑", "stoi": "↑", "f0corr": "↑"}


def read(files: Sequence[Path]) -> dict[str, dict]:
    """Reports of one codec -> {kind: report}. Raises EvaluationError for an unknown file."""
    found = {}
    for path in files:
        try:
            report = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise EvaluationError(f"{path}: not a readable report ({error})") from error
        kinds = [kind for kind, fits in KINDS.items() if fits(report)]
        if not kinds:
            raise EvaluationError(f"{path}: not a report of `evaluate` ({', '.join(KINDS)})")
        found[kinds[0]] = report
    return found


def write(
    path: Path, codecs: dict[str, dict[str, dict]], reference: Path | None, heard: dict[str, Path]
) -> Path:
    """Writes the page. `codecs`: name -> {kind: report}; `heard`: name -> folder of its audio."""
    sections = [
        ("Reconstruction", _reconstruction(codecs)),
        ("Token predictability", _predictability(codecs)),
        ("Coherence", _coherence(codecs)),
        ("Consistency", _consistency(codecs)),
        ("Listening", _listening(reference, heard) if reference else ""),
    ]
    return page.write(
        path,
        "Codec comparison",
        "Intervals are 95 % over clips, or the spread over seeds where a row says so.",
        [(heading, content) for heading, content in sections if content],
    )


def _with(codecs: dict, kind: str) -> dict[str, dict]:
    return {name: reports[kind] for name, reports in codecs.items() if kind in reports}


def _plus_minus(value: float | None, half: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" + ("" if half is None else f" ± {half:.3f}")


def _reconstruction(codecs: dict) -> str:
    reports = _with(codecs, "reconstruction")
    if not reports:
        return ""
    header = ["codec", "clips", *(f"{m} {BETTER[m]}" for m in METRICS), "si-sdr ↑", "mcd ↓"]
    rows = []
    for name, report in reports.items():
        extra = report["additional"]
        cells = [
            *((report["mean"].get(m), report["interval"].get(m)) for m in METRICS),
            *((extra["mean"].get(m), extra["interval"].get(m)) for m in ("si_sdr", "mcd")),
        ]
        rows.append([name, len(report["items"]), *(_plus_minus(*cell) for cell in cells)])
    parts = [page.table(header, rows)]
    categories = sorted({c for r in reports.values() for c in r["categories"]})
    rows = [
        [
            category,
            name,
            *(_plus_minus(report["categories"][category].get(m), None) for m in METRICS),
        ]
        for category in categories
        for name, report in reports.items()
        if category in report["categories"]
    ]
    if 1 < len(categories) <= 20:
        parts.append(page.table(["category", "codec", *METRICS], rows))
    for name, report in reports.items():
        for metric, reason in report["absent"].items():
            parts.append(page.paragraph(f"{name}: {metric} absent, {reason}", "note"))
        for metric, count in report["undefined"].items():
            note = f"{name}: {metric} is undefined on {count} clips, left out of its mean"
            parts.append(page.paragraph(note, "note"))
    parts.append(
        page.paragraph(
            "mel to f0corr are Codec-SUPERB's metrics at each clip's own rate; "
            "si-sdr and mcd (dB) are additional.",
            "note",
        )
    )
    return page.Markup("".join(parts))


def _predictability(codecs: dict) -> str:
    reports = _with(codecs, "token_lm")
    if not reports:
        return ""
    header = [
        "codec",
        "nats/token ↓",
        "bits/s ↓",
        "gain over unigram ↑",
        "with tuned LM, nats/token ↓",
        "unigram entropy",
        "code use",
        "ln V",
        "coded bits/s",
        "mel ↓",
        "pesq ↑",
        "stoi ↑",
    ]
    rows, parts = [], []
    for name, report in reports.items():
        small, tuned, sound = (
            report["small_lm"],
            report["pretrained_lm"],
            report["reconstruction"] or {},
        )
        rows.append(
            [
                name,
                _plus_minus(small["nats_per_token"]["mean"], small["nats_per_token"]["deviation"]),
                _plus_minus(
                    small["bits_per_second"]["mean"], small["bits_per_second"]["deviation"]
                ),
                _plus_minus(small["gain_over_unigram"], None),
                "–"
                if tuned is None
                else _plus_minus(
                    tuned["nats_per_token"]["mean"], tuned["nats_per_token"]["deviation"]
                ),
                _plus_minus(report["unigram"]["entropy"], None),
                f"{report['unigram']['effective']:.1%}",
                _plus_minus(float(np.log(report["stream"]["codebook_size"])), None),
                report["stream"]["bits_per_second"],
                *(_plus_minus(sound.get(m), None) for m in ("mel", "pesq", "stoi")),
            ]
        )
        parts += [page.paragraph(f"{name}: {flag}", "warn") for flag in report["flags"]]
    parts.insert(0, page.table(header, rows))
    protocols = {json.dumps(report["protocol"], sort_keys=True) for report in reports.values()}
    if len(protocols) > 1:
        parts.append(
            page.paragraph("These codecs ran under different protocols: not comparable.", "warn")
        )
    parts.append(
        page.paragraph(
            "± is the standard deviation over seeds. Code use is exp(unigram entropy) as a share "
            "of what a uniform stream of the same length would reach.",
            "note",
        )
    )
    caption = "Rate against distortion and against predictability"
    parts.append(page.picture(_rate_plots(reports), caption))
    return page.Markup("".join(parts))


def _rate_plots(reports: dict[str, dict]) -> Figure:
    """Coded rate against mel distance, and against the rate a language model needs."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="tight")
    for name, report in reports.items():
        rate = report["stream"]["bits_per_second"]
        modelled = report["small_lm"]["bits_per_second"]
        axes[1].errorbar(rate, modelled["mean"], yerr=modelled["deviation"], fmt="o", capsize=3)
        axes[1].annotate(name, (rate, modelled["mean"]), xytext=(5, 5), textcoords="offset points")
        mel = (report["reconstruction"] or {}).get("mel")
        if mel is not None:
            axes[0].plot(rate, mel, "o")
            axes[0].annotate(name, (rate, mel), xytext=(5, 5), textcoords="offset points")
    axes[0].set(xlabel="coded rate, bits per second", ylabel="mel distance (lower is better)")
    axes[1].set(xlabel="coded rate, bits per second", ylabel="bits per second under the LM")
    for axis in axes:
        axis.margins(0.25)
        axis.grid(alpha=0.3)
    return figure


def _coherence(codecs: dict) -> str:
    reports = _with(codecs, "salmon")
    if not reports:
        return ""
    parts = dict.fromkeys(part for report in reports.values() for part in report["parts"])

    def cell(report, part):
        if part not in report["parts"]:
            return "–"
        shown = []
        for kind in ("summed", "normalised"):
            value = report["parts"][part][kind]
            low, high = value["interval"]
            shown.append(f"{value['accuracy']:.1%} [{low:.0%}–{high:.0%}]")
        return " / ".join(shown)

    rows = [[part, *(cell(report, part) for report in reports.values())] for part in parts]
    note = (
        "Accuracy by summed / per-token likelihood, 95 % intervals; chance is 50 %. A control "
        "above chance means that the model hears splices: its part then proves nothing."
    )
    return page.Markup(page.table(["part", *reports], rows) + page.paragraph(note, "note"))


def _consistency(codecs: dict) -> str:
    reports = _with(codecs, "consistency")
    if not reports:
        return ""
    changes = dict.fromkeys(change for report in reports.values() for change in report["mean"])
    rows = [
        [name, *(_plus_minus(r["mean"].get(c), r["interval"].get(c)) for c in changes)]
        for name, r in reports.items()
    ]
    note = "Token edit distance per token after a change that does not alter the sound; 0 is best."
    return page.Markup(page.table(["codec", *changes], rows) + page.paragraph(note, "note"))


def _listening(reference: Path, heard: dict[str, Path], count: int = 4) -> str:
    """The first clips of evenly spaced names: reference and every codec, seen and heard."""
    paths = audio.find(reference)
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int)]
    parts = []
    for path in chosen:
        name = path.relative_to(reference)
        rate = min(audio.read(path)[1], 24000)
        clips = {"reference": audio.load(path, rate)}
        for codec, folder in heard.items():
            matches = sorted((folder / name.parent).glob(f"{name.stem}.*"))
            if matches:
                clips[codec] = audio.load(matches[0], rate)
        shortest = min(map(len, clips.values()))
        clips = {codec: wav[: min(shortest, 8 * rate)] for codec, wav in clips.items()}
        parts.append(page.picture(pictures.spectrograms(clips, rate), name.as_posix()))
        parts.append(page.cards(page.player(wav, rate, codec) for codec, wav in clips.items()))
    return page.Markup("".join(parts))
