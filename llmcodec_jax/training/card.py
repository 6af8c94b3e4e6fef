"""card.html of a run: what its codec is, how good it was when saved, how to use it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from llmcodec_jax.pages import html
from llmcodec_jax.training import summary

PAGES = {
    "report.html": "the run's report",
    "card.html": "the codec's card",
    "comparison.html": "the comparison",
}


def neighbours(workdir: Path, this: str) -> list[tuple[str, str]]:
    """(words, relative address) of the pages that belong together, but `this` one.

    A comparison is looked for in the run's folder and in the two above it, as the study lays them.
    """
    found = []
    for name, words in PAGES.items():
        places = (
            [workdir, *workdir.resolve().parents[:2]] if name == "comparison.html" else [workdir]
        )
        page = next((place / name for place in places if (place / name).is_file()), None)
        if name != this and page is not None:
            found.append((words, os.path.relpath(page, workdir)))
    return found


def write(workdir: Path, rows: Sequence[dict]) -> Path | None:
    """Reads the run's codec folder and last evaluation; None where there is no codec yet."""
    described = workdir / "codec" / "codec.json"
    if not described.is_file():
        return None
    about = json.loads(described.read_text("utf-8"))
    facts = [[name, html.Markup(html.text(value))] for name, value in about.items()]
    found = summary.evaluations(rows)
    scores = [
        [f"{title} {better}", found[-1].get(name)]
        for name, (title, better) in summary.EVALUATED.items()
        if found and found[-1].get(name) is not None
    ]
    step = f"Held out, step {found[-1]['step']}" if found else "Nothing was evaluated"
    use = (
        "import llmcodec_jax\n\n"
        f"codec = llmcodec_jax.load_codec({str(workdir)!r})\n"
        "codes = codec.encode(wav, sample_rate)\nwav = codec.decode(codes)\n\n"
        f"# to share it: llmcodec export --run {workdir} --format hub --output FOLDER"
    )
    sections = [
        ("Scores", html.paragraph(step, "note") + html.table(["metric", "value"], scores)),
        ("Use", html.code(use)),
        ("Every field", html.table(["field", "value"], facts)),
    ]
    others = [("the run's report", "report.html"), *neighbours(workdir, "report.html")]
    links = html.links((words, where) for words, where in others if where != "card.html")
    name = f"Codec {workdir.name}"
    return html.write(
        workdir / "card.html", name, _sentence(about), sections, links + _rates(about)
    )


def _sentence(about: dict) -> str:
    return f"An {about.get('architecture', 'audio')} codec; each field of it below."


def _rates(about: dict) -> str:
    """The numbers one asks for first, of the fields that every family has."""
    rate, hop, size = (about.get(name) for name in ("sample_rate", "hop", "codebook_size"))
    if not rate or not hop or not size:
        return ""
    levels = about.get("levels", 1)
    bits = rate / hop * levels * math.log2(size)
    return html.tiles(
        [
            ("sample rate", f"{rate:,} Hz", f"{hop} samples a frame"),
            ("frames a second", round(rate / hop, 2), "tokens a level"),
            ("codes", f"{levels} x {size:,}", "levels x codebook"),
            ("bits a second", round(bits), "every code equally likely"),
        ]
    )
