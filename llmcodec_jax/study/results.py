"""What the study found: one row a run, differences from the control, a sentence each."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from llmcodec_jax.evaluation import comparison
from llmcodec_jax.evaluation.paired import difference
from llmcodec_jax.evaluation.reports import plus_minus, write_json
from llmcodec_jax.pages import html, plots
from llmcodec_jax.study.material import UNSEEN

COLUMNS = {
    "nats": "nats/token ↓",
    "unseen": "nats/token, unseen voices ↓",
    "new": "nats/token that repeats nothing ↓",
    "unseen_new": "the same, unseen voices ↓",
    "gain": "gain over unigram ↑",
    "bits": "LM bits/s ↓",
    "unheard": "gain left without look-ahead ↑",
    "repeats": "repeated codes",
    "unigram": "unigram entropy",
    "used": "codes used",
    "use": "effective code use",
    "mel": "mel ↓",
    "stft": "stft ↓",
    "pesq": "pesq ↑",
    "stoi": "stoi ↑",
    "unseen_mel": "mel, unseen voices ↓",
    "unseen_stoi": "stoi, unseen voices ↑",
    "wer": "WER ↓",
    "speaker": "speaker similarity ↑",
    "coherence": "coherence ↑",
    "reencoded": "re-encoded ↓",
    "truncated": "half coded alone ↓",
}
HEADER = ["variant", "seeds", "teacher", *COLUMNS.values()]
CONTROL = "control"
COLOURS = plt.get_cmap("tab20").colors[::2] + plt.get_cmap("tab20").colors[1::2]
REPORTS = ("report", "token_lm", "salmon", "consistency")
"""What every codec's evaluation folder holds, as NAME.json."""
LM_SEEDS = "lm_seeds"
"""Findings hold the noise of the token LM under this name."""
HEAD_START = "head_start"
"""The base's holds this one too."""


def read_run(folder: Path) -> dict[str, float]:
    """A run's evaluation folder -> one number for each of COLUMNS."""
    reports = {name: json.loads((folder / f"{name}.json").read_text()) for name in REPORTS}
    sound, tokens = reports["report"]["mean"], reports["token_lm"]
    unseen = folder / f"{UNSEEN}.json"
    apart = json.loads(unseen.read_text())["mean"] if unseen.exists() else {}
    return {
        "nats": tokens["small_lm"]["nats_per_token"]["mean"],
        "unseen": tokens["small_lm"].get("unseen_nats_per_token", {}).get("mean"),
        "new": tokens["small_lm"].get("new_nats_per_token", {}).get("mean"),
        "unseen_new": tokens["small_lm"].get("unseen_new_nats_per_token", {}).get("mean"),
        "unigram": tokens["unigram"]["entropy"],
        "gain": tokens["small_lm"]["gain_over_unigram"],
        "bits": tokens["small_lm"]["bits_per_second"]["mean"],
        "unheard": (tokens["small_lm"]["look_ahead"] or {}).get("share"),
        "repeats": tokens["unigram"]["repeats"],
        "used": tokens["unigram"]["codes_used"],
        "use": tokens["unigram"]["effective"],
        **{name: sound.get(name) for name in ("mel", "stft", "pesq", "stoi")},
        **{f"unseen_{name}": apart.get(name) for name in ("mel", "stoi")},
        "wer": reports["report"].get("hearing", {}).get("pooled", {}).get("wer"),
        "speaker": reports["report"]["additional"]["mean"].get("speaker"),
        "coherence": reports["salmon"]["mean"].get("normalised"),
        **{name: reports["consistency"]["mean"][name] for name in ("reencoded", "truncated")},
    }


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """p-values of a family of tests, adjusted so that they may be read together (Holm 1979)."""
    adjusted, largest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = largest
    return adjusted


def adjust(changes: dict[str, dict], columns: Sequence[str]) -> None:
    """Adds "holm" to every row's change of these columns: p over all rows that have an interval."""
    for column in columns:
        tests = {n: change[column] for n, change in changes.items() if change.get(column)}
        found = holm({n: test["p"] for n, test in tests.items() if test["p"] is not None})
        for name, p in found.items():
            tests[name]["holm"] = p


def sentence(name: str, change: dict[str, dict]) -> str:
    """What a row shows, in words that follow from its numbers alone.

    Fewer nats can come from better prediction (gain over unigram) or from fewer codes (entropy):
    both shares are named, and losing more than a twentieth of the entropy or of the codes in use
    is called what it is.
    """
    nats, half = change["nats"]["mean"], change["nats"]["half_width"]
    if half is None:
        sure = "one seed, no interval"
    else:
        low, high = nats - half, nats + half
        zero = "includes" if low <= 0 <= high else "excludes"
        sure = f"95 % interval {low:+.3f} to {high:+.3f}, which {zero} zero"
        if "holm" in change["nats"]:
            p = change["nats"]["holm"]
            sure += f"; p {'< 0.001' if p < 1e-3 else f'{p:.3f}'} corrected for all rows"
    costs = [
        f"{column} {100 * change[column]['relative']:+.1f} %"
        for column in ("mel", "stoi", "wer", "repeats", "unigram", "used", "use")
        if change.get(column) and change[column]["relative"] is not None
    ]
    given_up = [c for c in ("unigram", "used", "use") if change[c]["relative"] < -0.05]
    for column, where in (("unseen", "unseen voices"), ("new", "tokens that repeat nothing")):
        if apart := change.get(column):
            wide = "" if apart["half_width"] is None else f" ± {apart['half_width']:.3f}"
            costs.insert(0, f"on {where} {apart['mean']:+.3f}{wide} nats")
    aim = " for it" if nats < 0 else ""
    verdict = f" Codes were given up{aim} ({', '.join(given_up)})." if given_up else ""
    return (
        f"{name} {'lowers' if nats < 0 else 'raises'} nats per token by {abs(nats):.3f} ({sure}); "
        f"gain over unigram {change['gain']['mean']:+.3f}; beside it {', '.join(costs)}.{verdict}"
    )


def head_start(folder: Path) -> str:
    """What an LM gains from audio rows that met the same tokens before, in words."""
    fresh, warm = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("token_lm", HEAD_START)
    )
    fresh = fresh["small_lm"]["nats_per_token"]["mean"]
    warm = warm["nats_per_token"]["mean"]
    return (
        f"The base's own tokens cost {fresh:.3f} nats under an LM with fresh audio rows and "
        f"{warm:.3f} under one whose rows were trained on them before: a head start alone is "
        f"worth {fresh - warm:+.3f}, with no codec changed. No row here has it."
    )


def lm_noise(folder: Path) -> dict | None:
    """The token LM's noise over its own seeds on one fixed codec; None with fewer than two.

    {"nats", "gain", "bits": (mean, deviation), "seeds": how many}.
    """
    report = json.loads((folder / "token_lm.json").read_text())
    nats, bits = (report["small_lm"][name] for name in ("nats_per_token", "bits_per_second"))
    if nats["deviation"] is None:
        return None
    return {
        "nats": (nats["mean"], nats["deviation"]),
        "gain": (report["unigram"]["nats"] - nats["mean"], nats["deviation"]),
        "bits": (bits["mean"], bits["deviation"]),
        "seeds": len(nats["values"]),
    }


def noise_sentence(noise: dict | None) -> str:
    """What differences between codecs have to stand out from, in words."""
    if noise is None:
        return "One token LM on each codec: what its seed alone does is not known."
    return (
        f"{noise['seeds']} token LMs that differ in nothing but their seed spread by "
        f"{noise['nats'][1]:.3f} nats per token (one standard deviation) on the base's tokens."
    )


def summarise(folders: dict[str, dict[int, Path]], teachers: dict[str, str]) -> dict:
    """variant -> seed -> run folder, variant -> its teacher
    -> {"runs", "changes", "findings", "lm_seeds", "teachers"}."""
    runs = {
        name: {seed: read_run(folder / "evaluation") for seed, folder in seeds.items()}
        for name, seeds in folders.items()
    }
    changes = {
        name: {column: difference(seeds, runs[CONTROL], column) for column in COLUMNS}
        for name, seeds in runs.items()
        if name not in (CONTROL, "base") and CONTROL in runs
    }
    adjust(changes, ("nats", "unseen", "new", "unseen_new"))
    findings = {name: sentence(name, change) for name, change in changes.items()}
    noise = lm_noise(folders["base"][0] / "evaluation")
    findings[LM_SEEDS] = noise_sentence(noise)
    findings[HEAD_START] = head_start(folders["base"][0] / "evaluation")
    return {
        "runs": runs,
        "changes": changes,
        "lm_seeds": noise,
        "findings": findings,
        "teachers": {name: teachers.get(name, "") for name in runs},
    }


def _cell(values: list) -> str:
    values = [v for v in values if v is not None]
    mean = statistics.fmean(values) if values else None
    return plus_minus(mean, statistics.stdev(values) if len(values) > 1 else None)


def table(summary: dict) -> list[list[str]]:
    """Rows for people: variant, seeds, teacher, then COLUMNS as mean ± deviation over seeds.

    A last row has the base's mean ± deviation over seeds of the token LM alone.
    """
    rows = [
        [
            name,
            len(seeds),
            summary["teachers"][name] or "–",
            *(_cell([run[c] for run in seeds.values()]) for c in COLUMNS),
        ]
        for name, seeds in summary["runs"].items()
    ]
    if noise := summary["lm_seeds"]:
        cells = [plus_minus(*noise.get(c, (None, None))) for c in COLUMNS]
        rows.append(["base, over LM seeds", noise["seeds"], "–", *cells])
    return rows


def markdown(summary: dict) -> str:
    """The main table as Markdown, with the sentences below it."""
    header = HEADER
    rows = [header, ["---"] * len(header), *table(summary)]
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([*lines, "", *(f"- {text}" for text in summary["findings"].values())]) + "\n"


def trade_off(summary: dict) -> Figure:
    """Nats per token, and what of them is prediction, against mel distance; every run a dot."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="tight")
    labels = {
        "nats": "nats per token (lower is better)",
        "gain": "gain over unigram (higher is better)",
    }
    for axis, (column, label) in zip(axes, labels.items(), strict=True):
        for index, (name, seeds) in enumerate(summary["runs"].items()):
            points = [(run["mel"], run[column]) for run in seeds.values()]
            marks = {"marker": "os^Dv"[index % 5], "color": COLOURS[index % len(COLOURS)]}
            axis.plot(*zip(*points, strict=True), linestyle="", label=plots.literal(name), **marks)
        axis.set(xlabel="mel distance (lower is better)", ylabel=label)
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def learning(folders: dict[str, dict[int, Path]]) -> Figure:
    """Development loss of the first seed's token LM: do orders change with training?"""
    figure, axis = plt.subplots(figsize=(8, 4.5), layout="tight")
    for index, (name, seeds) in enumerate(folders.items()):
        report = json.loads((seeds[min(seeds)] / "evaluation" / "token_lm.json").read_text())
        curve = report["small_lm"]["seeds"][0]["curve"][1:]
        axis.plot(
            *zip(*curve, strict=True),
            label=plots.literal(name),
            color=COLOURS[index % len(COLOURS)],
        )
    axis.set(xlabel="step of the token LM", ylabel="development nats per token")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def write(
    workdir: Path,
    folders: dict[str, dict[int, Path]],
    teachers: dict[str, str],
    clips: Path,
    about: str,
) -> dict:
    """report.json, results.md, two pictures and report.html in `workdir`; -> the summary."""
    summary = summarise(folders, teachers)
    write_json(workdir / "report.json", summary)
    (workdir / "results.md").write_text(markdown(summary))
    pictures = {"trade_off": trade_off(summary), "learning": learning(folders)}
    for name, figure in pictures.items():
        figure.savefig(workdir / f"{name}.png", dpi=110)
    first = {name: seeds[min(seeds)] / "evaluation" for name, seeds in folders.items()}
    audio = {name: folder / "audio" for name, folder in first.items()}
    findings = "".join(html.paragraph(text) for text in summary["findings"].values())
    main = html.table(HEADER, table(summary))
    note = (
        "± is the deviation over seeds. Nats are of a small LM from scratch, the same start, clips "
        "and steps for all, on clips no codec was trained on. Effective code use is exp(unigram "
        "entropy) over what a uniform stream of this length would reach."
    )
    html.write(
        workdir / "report.html",
        "The study in miniature",
        about,
        [
            ("Findings", html.Markup(findings)),
            ("All runs", html.Markup(main + html.paragraph(note, "note"))),
            ("Predictability against fidelity", html.picture(pictures["trade_off"])),
            ("The token LM learns", html.picture(pictures["learning"])),
            ("Listening", comparison.listening(clips, audio)),
        ],
    )
    reports = {n: comparison.read([f / f"{r}.json" for r in REPORTS]) for n, f in first.items()}
    comparison.write(workdir / "comparison.html", reports, None, {})
    return summary
