"""Any number of codecs side by side: `report.json` and one self-contained page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from llmcodec_jax import audio
from llmcodec_jax.evaluation import comparison_first, speed
from llmcodec_jax.evaluation.codec_superb import METRICS
from llmcodec_jax.evaluation.reports import EvaluationError, plus_minus
from llmcodec_jax.pages import html, plots

KINDS: dict[str, Callable[[dict], bool]] = {
    "reconstruction": lambda r: "mel" in r.get("mean", {}) and "categories" in r,
    "token_lm": lambda r: "small_lm" in r,
    "salmon": lambda r: "parts" in r,
    "consistency": lambda r: "reencoded" in r.get("mean", {}),
    "speed": lambda r: "speed" in r and "device" in r,
}
MARKERS = "osD^vP*X"
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
    path: Path, codecs: dict[str, dict[str, dict]], reference: Path | None, folders: dict[str, Path]
) -> Path:
    """Writes the page. `codecs`: name -> {kind: report}; `folders`: name -> folder of its audio."""
    sections = [
        ("Reconstruction", _reconstruction(codecs)),
        ("Token predictability", _predictability(codecs)),
        ("Coherence", _coherence(codecs)),
        ("Consistency", _consistency(codecs)),
        ("Speed", speed.section(_with(codecs, "speed"))),
        ("Listening", listening(reference, folders) if reference else ""),
    ]
    return html.write(
        path,
        "Codec comparison",
        comparison_first.verdict(codecs),
        [(heading, content) for heading, content in sections if content],
        comparison_first.screen(path, codecs, _first_players(reference, folders)),
    )


def _first_players(reference: Path | None, folders: dict[str, Path]) -> list[str]:
    """The reference and every codec on one clip, to hear at once."""
    if reference is None:
        return []
    clips, rate, _ = _clips(audio.find(reference)[0], reference, folders)
    return [html.player(wav, rate, codec) for codec, wav in clips.items()]


def _with(codecs: dict, kind: str) -> dict[str, dict]:
    return {name: reports[kind] for name, reports in codecs.items() if kind in reports}


def _reconstruction(codecs: dict) -> str:
    reports = _with(codecs, "reconstruction")
    if not reports:
        return ""
    rows = [["clips", *(len(r["items"]) for r in reports.values())]]
    for metric in METRICS:
        cells = [(r["mean"].get(metric), r["interval"].get(metric)) for r in reports.values()]
        rows.append([f"{metric} {BETTER[metric]}", *(plus_minus(*cell) for cell in cells)])
    extra = [report["additional"] for report in reports.values()]
    for metric in dict.fromkeys(name for r in extra for name in r["mean"]):
        cells = [(r["mean"].get(metric), r["interval"].get(metric)) for r in extra]
        rows.append([f"additional: {metric}", *(plus_minus(*cell) for cell in cells)])
    parts = [_same_clips(reports), html.table(["", *reports], rows), _categories(reports)]
    for name, report in reports.items():
        if failed := report.get("failed"):
            note = f"{name}: {len(failed)} clips could not be scored, such as {min(failed)}"
            parts.append(html.paragraph(note, "warn"))
        for metric, reason in report["absent"].items():
            parts.append(html.paragraph(f"{name}: {metric} absent, {reason}", "note"))
        for metric, count in report["undefined"].items():
            note = f"{name}: {metric} is undefined on {count} clips, left out of its mean"
            parts.append(html.paragraph(note, "note"))
    note = "mel to f0corr are Codec-SUPERB's metrics at each clip's own rate; si_sdr, mcd in dB."
    return html.Markup("".join(parts) + html.paragraph(note, "note"))


def _same_clips(reports: dict[str, dict]) -> str:
    """A warning where codecs were not scored on the same clips."""
    clips = {name: set(report["items"]) for name, report in reports.items()}
    shared = set.intersection(*clips.values())
    if all(names == shared for names in clips.values()):
        return ""
    more = {name: len(names - shared) for name, names in clips.items() if names != shared}
    others = ", ".join(f"{name} has {count} others" for name, count in more.items())
    return html.paragraph(
        f"Not comparable as they stand: these codecs were scored on different clips. "
        f"{len(shared)} are shared; {others}.",
        "warn",
    )


def _categories(reports: dict[str, dict]) -> str:
    names = sorted({c for r in reports.values() for c in r["categories"]})
    if not 1 < len(names) <= 20:
        return ""
    rows = [
        [
            f"{category} · {codec}",
            *(plus_minus(report["categories"][category].get(m), None) for m in METRICS),
        ]
        for category in names
        for codec, report in reports.items()
        if category in report["categories"]
    ]
    return html.paragraph("By category") + html.table(["category · codec", *METRICS], rows)


def _predictability(codecs: dict) -> str:
    reports = _with(codecs, "token_lm")
    if not reports:
        return ""
    rows = [
        [label, *(show(report) for report in reports.values())]
        for label, show in PREDICTABILITY.items()
    ]
    parts = [html.table(["", *reports], rows)]
    for name, report in reports.items():
        parts += [html.paragraph(f"{name}: {flag}", "warn") for flag in report["flags"]]
    protocols = {json.dumps(report["protocol"], sort_keys=True) for report in reports.values()}
    if len(protocols) > 1:
        parts.append(
            html.paragraph("These codecs ran under different protocols: not comparable.", "warn")
        )
    note = (
        "± is the standard deviation over seeds. Code use is exp(unigram entropy) as a share of "
        "what a uniform stream of the same length would reach. A low perplexity means something "
        "only where code use and reconstruction hold, and where it is bought neither by repeated "
        "codes nor by an encoder that looks ahead: generation can count on what is left without "
        "look-ahead."
    )
    parts.append(html.paragraph(note, "note"))
    pictures = (html.picture(figure, caption) for caption, figure in _rate_plots(reports))
    parts.append(html.cards(pictures))
    return html.Markup("".join(parts))


def _under_lm(part: str, measure: str) -> Callable[[dict], str]:
    def show(report: dict) -> str:
        if report[part] is None:
            return "–"
        value = report[part][measure]
        if isinstance(value, dict):
            return plus_minus(value["mean"], value["deviation"])
        return plus_minus(value, None)

    return show


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _look_ahead(measured: dict) -> str:
    """Absent in older reports, and where there was no codec to ask."""
    found = measured.get("look_ahead")
    if not found or found["share"] is None:
        return "–"
    low, high = found["interval"]
    return f"{found['share']:.0%} [{low:.0%}–{high:.0%}]"


def _beside(metric: str) -> Callable[[dict], str]:
    return lambda report: plus_minus((report["reconstruction"] or {}).get(metric), None)


PREDICTABILITY: dict[str, Callable[[dict], object]] = {
    "small LM, nats per token ↓": _under_lm("small_lm", "nats_per_token"),
    "small LM, bits per second ↓": _under_lm("small_lm", "bits_per_second"),
    "small LM, gain over unigram ↑": _under_lm("small_lm", "gain_over_unigram"),
    "tuned LM, nats per token ↓": _under_lm("pretrained_lm", "nats_per_token"),
    "tuned LM, gain over unigram ↑": _under_lm("pretrained_lm", "gain_over_unigram"),
    "unigram entropy, nats": lambda r: plus_minus(r["unigram"]["entropy"], None),
    "uniform (ln V), nats": lambda r: f"{np.log(r['stream']['codebook_size']):.3f}",
    "repeated codes": lambda r: _percent(r["unigram"].get("repeats")),
    "gain left without look-ahead ↑": lambda r: _look_ahead(r["small_lm"]),
    "code use": lambda r: f"{r['unigram']['effective']:.1%}",
    "coded rate, bits per second": lambda r: r["stream"]["bits_per_second"],
    "reconstruction: mel ↓": _beside("mel"),
    "reconstruction: pesq ↑": _beside("pesq"),
    "reconstruction: stoi ↑": _beside("stoi"),
}


def _rate_plots(reports: dict[str, dict]) -> Iterator[tuple[str, Figure]]:
    """Coded rate against mel distance, and against the rate a language model needs."""
    titles = {
        "mel distance (lower is better)": lambda r: ((r["reconstruction"] or {}).get("mel"), None),
        "bits per second under the LM": lambda r: [
            r["small_lm"]["bits_per_second"][key] for key in ("mean", "deviation")
        ],
    }
    for title, measure in titles.items():
        figure, axis = plt.subplots(figsize=(5, 4.2), layout="constrained")
        for index, (name, report) in enumerate(reports.items()):
            value, spread = measure(report)
            if value is not None:
                marks = {"fmt": MARKERS[index % len(MARKERS)], "color": f"C{index % 10}"}
                rate = report["stream"]["bits_per_second"]
                label = plots.literal(name)
                axis.errorbar(rate, value, yerr=spread, capsize=3, label=label, **marks)
        axis.set(xlabel="coded rate, bits per second", ylabel=title)
        axis.margins(0.15)
        axis.grid(alpha=0.3)
        # Below the axis, not at the points: names of codecs of one rate would cover each other.
        if axis.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
        yield f"Coded rate against {title}", figure


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
    return html.Markup(html.table(["part", *reports], rows) + html.paragraph(note, "note"))


def _consistency(codecs: dict) -> str:
    reports = _with(codecs, "consistency")
    if not reports:
        return ""
    changes = dict.fromkeys(change for report in reports.values() for change in report["mean"])
    rows = [
        [
            change,
            *(
                plus_minus(r["mean"].get(change), r["interval"].get(change))
                for r in reports.values()
            ),
        ]
        for change in changes
    ]
    note = "Token edit distance per token after a change that does not alter the sound; 0 is best."
    return html.Markup(html.table(["change", *reports], rows) + html.paragraph(note, "note"))


def listening(reference: Path, folders: dict[str, Path], count: int = 4) -> str:
    """Clips of evenly spaced names: what is said, the reference and every codec, seen and heard."""
    paths = audio.find(reference)
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int)]
    parts = []
    for path in chosen:
        name = path.relative_to(reference)
        clips, rate, missing = _clips(path, reference, folders)
        parts.append(html.quote(f"{transcript(path) or 'no transcript'} ({name.as_posix()})"))
        parts.append(html.picture(plots.spectrograms(clips, rate), chart=False))
        parts.append(html.cards(html.player(wav, rate, codec) for codec, wav in clips.items()))
        if missing:
            parts.append(html.paragraph(f"not there of {', '.join(missing)}", "note"))
    return html.Markup("".join(parts))


def _clips(
    path: Path, reference: Path, folders: dict[str, Path]
) -> tuple[dict[str, np.ndarray], int, list[str]]:
    """-> (codec or "reference" -> up to 8 s of one clip, their rate, codecs that lack it)."""
    name, rate = path.relative_to(reference), min(audio.read(path)[1], 24000)
    clips, missing = {"reference": audio.load(path, rate)}, []
    for codec, folder in folders.items():
        found = [p for p in _beside_name(folder, name) if p.suffix.lower() in audio.EXTENSIONS]
        if found:
            clips[codec] = audio.load(found[0], rate)
        else:
            missing.append(codec)
    shortest = min(map(len, clips.values()))
    return {c: wav[: min(shortest, 8 * rate)] for c, wav in clips.items()}, rate, missing


def _beside_name(folder: Path, name: Path) -> list[Path]:
    """Files of a clip's name with any suffix; names may hold what a glob would take for its own."""
    place = (folder / name).parent
    return sorted(p for p in place.iterdir() if p.stem == name.stem) if place.is_dir() else []


def transcript(path: Path) -> str:
    """What is said in a clip: NAME.txt beside it, or its line of LibriSpeech's transcripts."""
    beside = path.with_suffix(".txt")
    if beside.is_file():
        return beside.read_text("utf-8", "replace").strip()
    for chapter in sorted(path.parent.glob("*.trans.txt")):
        for line in chapter.read_text("utf-8", "replace").splitlines():
            name, _, text = line.partition(" ")
            if name == path.stem:
                return text.strip()
    return ""
