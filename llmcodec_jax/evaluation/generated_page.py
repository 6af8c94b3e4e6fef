"""Generated speech of any number of systems side by side: what differs, and players to hear it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from llmcodec_jax import audio
from llmcodec_jax.evaluation.paired import difference
from llmcodec_jax.evaluation.reports import EvaluationError, plus_minus
from llmcodec_jax.pages import html, plots

RATE = 16_000  # Hz, of the players
LISTEN = 6  # rows to hear
SECONDS = 12.0  # of a clip that is heard, at most
BETTER = {
    "wer": "↓", "cer": "↓", "speaker": "↑", "margin": "↑", "dnsmos": "↑", "utmos": "↑",
}  # fmt: skip
MEANING = {
    "wer": "word error rate", "cer": "character error rate",
    "speaker": "similarity to the voice asked for", "stranger": "similarity to a stranger's",
    "margin": "the one less the other", "dnsmos": "DNSMOS", "utmos": "UTMOS",
    "repeats": "frames that repeat", "loops": "runs said before",
    "repeats_original": "frames that repeat, recording", "loops_original": "runs, recording",
    "speaker_original": "similarity of the recording's own end",
}  # fmt: skip


def compare(systems: Mapping[str, Sequence[dict]]) -> dict:
    """Reports of `generated.evaluate`, one or one a seed of each system -> what differs.

    {"over": "clips" or "seeds", "mean": {system: {measure: [mean, half or deviation]}},
    "difference": {system: {measure: `paired.difference` from the first system}}}. One report each:
    means with 95 % intervals over clips, pairs are clips. Several: means and deviations over
    seeds, pairs are seeds, and the word error rate is pooled. Raises EvaluationError where systems
    have different numbers of seeds.
    """
    counts = {name: len(reports) for name, reports in systems.items()}
    check_seeds(counts)
    several = max(counts.values()) > 1
    values = {name: _by_seed(r) if several else r[0]["items"] for name, r in systems.items()}
    first = next(iter(values))
    measures = _measures([report for reports in systems.values() for report in reports])
    means: dict[str, dict] = {}
    for name, reports in systems.items():
        if several:
            means[name] = {m: _spread(list(values[name].values()), m) for m in measures}
        else:
            mean, half = reports[0]["mean"], reports[0]["interval"]
            means[name] = {m: [mean.get(m), half.get(m)] for m in measures}
    found = {
        name: {m: difference(values[name], values[first], m) for m in measures}
        for name in values
        if name != first
    }
    return {"over": "seeds" if several else "clips", "mean": means, "difference": found}


def check_seeds(counts: Mapping[str, int]) -> None:
    """How many seeds of each system there are: raises EvaluationError where they differ."""
    if len(set(counts.values())) != 1:
        raise EvaluationError(
            f"as many folders of each system are needed to pair them: {dict(counts)}"
        )


def _by_seed(reports: Sequence[dict]) -> dict[int, dict]:
    """Seed -> its measures; error rates over all words, where there are any."""
    rates = ({k: v for k, v in r["pooled"].items() if k in BETTER} for r in reports)
    return {n: r["mean"] | rate for n, (r, rate) in enumerate(zip(reports, rates, strict=True))}


def _measures(reports: Sequence[dict]) -> list[str]:
    """Those that any report has, in the order of MEANING."""
    there = {name for report in reports for name in report["mean"]}
    return [name for name in MEANING if name in there]


def _spread(rows: Sequence[dict], measure: str) -> list[float | None]:
    """[mean, deviation] over seeds."""
    known = [row[measure] for row in rows if row.get(measure) is not None]
    if not known:
        return [None, None]
    return [statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None]


def write(
    path: Path,
    rows: Sequence[dict],
    systems: Mapping[str, Sequence[dict]],
    compared: dict,
    folders: Mapping[str, Path],
    prompt_seconds: float,
) -> Path:
    """Writes the page. `systems` and what `compare` found of them; `folders`: to listen to."""
    names = ", ".join(systems)
    lead = f"{names}: {len(rows)} requests each. " + (
        "± is the deviation over seeds."
        if compared["over"] == "seeds"
        else "± is the 95 % interval over clips."
    )
    sections = [
        ("What was measured", _table(compared)),
        ("Listening", _listening(rows, systems, folders, prompt_seconds)),
        ("Left out", _left_out(systems)),
    ]
    filled = [(heading, content) for heading, content in sections if content]
    return html.write(path, "Generated speech", lead, filled)


def _table(compared: dict) -> str:
    others = compared["difference"]
    first = next(iter(compared["mean"]))
    rows = []
    for measure in compared["mean"][first]:
        cells = [plus_minus(*values[measure]) for values in compared["mean"].values()]
        apart = []
        for changes in others.values():
            change = changes[measure]
            if change is None:
                apart.append("–")
                continue
            half = change["half_width"]
            shown = plus_minus(change["mean"], half, signed=True)
            clear = half is not None and abs(change["mean"]) > half
            apart.append(html.strong(shown) if clear else shown)
        name = f"{MEANING[measure]} {BETTER.get(measure, '')}".strip()
        rows.append([name, *cells, *apart])
    header = ["", *compared["mean"], *(f"{name} − {first}" for name in others)]
    table = html.table(header, rows)
    if not others:
        return table
    note = (
        f"Differences are paired by {compared['over'].removesuffix('s')}, ± their 95 % t-interval; "
        "one that excludes zero stands out. They are not corrected for being many."
    )
    return html.Markup(table + html.paragraph(note, "note"))


def _listening(
    rows: Sequence[dict],
    systems: Mapping[str, Sequence[dict]],
    folders: Mapping[str, Path],
    prompt_seconds: float,
) -> str:
    """Evenly spaced requests: what was asked for, the voice given, and what each system said."""
    items = {name: reports[0]["items"] for name, reports in systems.items()}
    told = [row for row in rows if any(row["id"] in found for found in items.values())]
    places = np.linspace(0, len(told) - 1, min(LISTEN, len(told))).round().astype(int)
    parts = []
    for row in (told[place] for place in places):
        clips = {}
        if given := row.get("continue") or row.get("voice"):
            words = f"the recording, from {prompt_seconds:g} s on not heard by them"
            title = words if row.get("continue") else "the voice asked for"
            clips[title] = audio.load(Path(given).expanduser(), RATE)
        for name, folder in folders.items():
            if row["id"] in items[name]:
                heard = items[name][row["id"]].get("heard")
                title = name if heard is None else f"{name}, heard as: {heard or '(nothing)'}"
                clips[title] = audio.load(wav_of(folder, row["id"]), RATE)
        clips = {title: wav[: round(SECONDS * RATE)] for title, wav in clips.items()}
        labels = [title.split(",")[0] for title in clips]
        shown = dict(zip(labels, clips.values(), strict=True))
        parts.append(html.quote(f"{row.get('text') or 'a continuation'} ({row['id']})"))
        parts.append(html.cards(html.player(wav, RATE, title) for title, wav in clips.items()))
        parts.append(html.picture(plots.spectrograms(shown, RATE), chart=False))
    return html.Markup("".join(parts))


def _left_out(systems: Mapping[str, Sequence[dict]]) -> str:
    """Requests without usable audio and measures without their packages."""
    lines = []
    for name, reports in systems.items():
        for report in reports:
            lines += [f"{name}: {reason}" for reason in report["failed"].values()]
            lines += [f"{m} absent: {reason}" for m, reason in report["absent"].items()]
    return html.Markup("".join(html.paragraph(line, "warn") for line in dict.fromkeys(lines)))


def wav_of(folder: Path, name: str) -> Path:
    """The audio of a request. Raises FileNotFoundError."""
    for suffix in (".wav", ".flac"):
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    raise FileNotFoundError(f"{folder / name}: no .wav or .flac of that name")
