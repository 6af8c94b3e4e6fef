"""The first screen of a comparison: which codec is better at what, heard and seen at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from llmcodec_jax.pages import html, plots

MAX_BARS = 12


class Value(NamedTuple):
    """A headline number and half its interval (over clips) or its deviation (over seeds)."""

    value: float | None
    half: float | None = None


def _scored(metric: str) -> Callable[[dict], Value]:
    def read(reports: dict) -> Value:
        if report := reports.get("reconstruction"):
            return Value(report["mean"].get(metric), report["interval"].get(metric))
        beside = (reports.get("token_lm") or {}).get("reconstruction") or {}
        return Value(beside.get(metric))

    return read


def _under_lm(measure: str) -> Callable[[dict], Value]:
    def read(reports: dict) -> Value:
        found = ((reports.get("token_lm") or {}).get("small_lm") or {}).get(measure)
        if isinstance(found, dict):
            return Value(found["mean"], found["deviation"])
        return Value(found)

    return read


def _rate(reports: dict) -> Value:
    return Value(((reports.get("token_lm") or {}).get("stream") or {}).get("bits_per_second"))


HEADLINES: dict[str, tuple[Callable[[dict], Value], str]] = {
    "mel distance": (_scored("mel"), "↓"),
    "STOI": (_scored("stoi"), "↑"),
    "PESQ": (_scored("pesq"), "↑"),
    "nats a token": (_under_lm("nats_per_token"), "↓"),
    "gain over unigram": (_under_lm("gain_over_unigram"), "↑"),
    "bits a second": (_rate, ""),
}
"""What is read first: (how to find it in a codec's reports, which way is better)."""


def best(codecs: dict[str, dict], title: str) -> str | None:
    """The codec that leads; None where its interval and the next one's are not known to differ."""
    read, better = HEADLINES[title]
    found = [(name, read(reports)) for name, reports in codecs.items()]
    known = [(name, value) for name, value in found if value.value is not None]
    if not better or len(known) < 2:
        return None
    known.sort(key=lambda item: item[1].value or 0.0, reverse=better == "↑")
    (name, first), (_, second) = known[:2]
    if first.half is None or second.half is None:
        return None
    apart = abs((first.value or 0.0) - (second.value or 0.0))
    return name if apart > first.half + second.half else None


def verdict(codecs: dict[str, dict]) -> str:
    """Who leads in what, in a sentence."""
    if len(codecs) == 1:
        return f"{next(iter(codecs))} alone; each further NAME=FILES is set beside it."
    leads: dict[str, list[str]] = {}
    for title in HEADLINES:
        if name := best(codecs, title):
            leads.setdefault(name, []).append(title)
    said = "; ".join(f"{name} leads in {', '.join(titles)}" for name, titles in leads.items())
    if not said:
        return f"{len(codecs)} codecs side by side; no intervals lie apart."
    return f"{said}: there the intervals (over clips, or over seeds) lie apart."


def screen(path: Path, codecs: dict[str, dict], players: Sequence[str]) -> str:
    """Headline numbers of every codec, one clip by each, one plot, and links to their pages."""
    titles = [
        title
        for title, (read, _) in HEADLINES.items()
        if any(read(reports).value is not None for reports in codecs.values())
    ]
    leaders = {title: best(codecs, title) for title in titles}
    rows = []
    for name, reports in codecs.items():
        values = {title: HEADLINES[title][0](reports).value for title in titles}
        cells = [html.strong(v) if leaders[t] == name else v for t, v in values.items()]
        rows.append([name, *cells])
    header = ["codec", *(f"{title} {HEADLINES[title][1]}".strip() for title in titles)]
    drawn = html.picture(figure) if (figure := headline_plot(codecs, titles)) else ""
    both = html.halves(html.players(players), drawn) if players and drawn else ""
    table = html.table(header, rows) if titles else ""
    alone = drawn or html.players(players)
    return html.Markup(table + links(path, codecs) + (both or alone))


def links(path: Path, codecs: dict[str, dict]) -> str:
    """To the report and the card of every codec that is a run, relative to the page."""
    found = []
    for name, reports in codecs.items():
        run = Path((reports.get("reconstruction") or {}).get("codec") or "")
        for page, words in (("report.html", "report"), ("card.html", "card")):
            if run.name and (run / page).is_file():
                address = os.path.relpath((run / page).resolve(), path.parent.resolve())
                found.append((f"{name}: {words}", address))
    return html.links(found)


def headline_plot(codecs: dict[str, dict], titles: Sequence[str]) -> Figure | None:
    """The first two headline numbers against each other, or the first one as bars."""
    wanted = [t for t in ("mel distance", "nats a token", "STOI") if t in titles]
    if not wanted:
        return None
    values = {
        name: [HEADLINES[title][0](reports).value for title in wanted[:2]]
        for name, reports in codecs.items()
    }
    known = {name: row for name, row in values.items() if None not in row}
    if not known:
        return None
    figure, axis = plt.subplots(figsize=(5.2, 2.7), layout="tight")
    labels = [f"{t} {'(lower is better)' if HEADLINES[t][1] == '↓' else '(higher is better)'}"
              for t in wanted[:2]]  # fmt: skip
    if len(wanted) == 1:
        shown = list(known.items())[:MAX_BARS]
        axis.barh([plots.literal(name) for name, _ in shown], [row[0] for _, row in shown])
        axis.set_xlabel(labels[0])
        axis.invert_yaxis()
        return figure
    for index, (name, row) in enumerate(known.items()):
        marker = "osD^vP*X"[index % 8]
        axis.plot(*row, marker, color=f"C{index % 10}", label=plots.literal(name))
    axis.set(xlabel=labels[0], ylabel=labels[1])
    axis.margins(0.2)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
