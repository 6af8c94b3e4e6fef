"""Self-contained HTML pages: text, tables, pictures and sound in one file, no scripts."""

from __future__ import annotations

import base64
import html
import io
import urllib.parse
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import soundfile

from llmcodec_jax.ops import files

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --accent: #2563eb; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2.5rem auto;
       padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { margin-top: 2.4rem; font-size: 1.25rem;
     border-bottom: 1px solid var(--line); padding-bottom: .3rem }
.lead { opacity: .75; margin-top: 0 } .note { opacity: .75; font-size: .9rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
         white-space: nowrap } th:first-child, td:first-child { text-align: left; min-width: 8rem;
         white-space: normal; overflow-wrap: break-word }
thead th { white-space: normal; overflow-wrap: break-word; max-width: 9rem; vertical-align: bottom }
@media (max-width: 40rem) { th, td { padding: .3rem .4rem } body { margin: 1.2rem auto } }
thead th { border-bottom: 2px solid var(--line) } tbody tr:hover { background: var(--soft) }
.scroll th:first-child, .scroll td:first-child { position: sticky; left: 0; background: Canvas }
td b { color: var(--accent) } td small { display: block; opacity: .7 }
details { margin: .8rem 0 } summary { cursor: pointer }
blockquote { margin: 1.2rem 0 .3rem; padding-left: .8rem; border-left: 3px solid var(--line) }
img { max-width: 100%; height: auto; border-radius: 6px } .chart { background: #fff }
@media (prefers-color-scheme: dark) { .chart { filter: invert(.93) hue-rotate(180deg) } }
.tiles { display: grid; gap: .7rem; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr));
margin: 1rem 0 } .tile { border: 1px solid var(--line); border-radius: 8px; padding: .6rem .9rem;
display: flex; flex-direction: column; min-width: 0 } .tile b { font-size: 1.55rem;
line-height: 1.3; font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
.tile span, .tile small { opacity: .75; font-size: .85rem }
.halves { display: grid; gap: 1rem 1.5rem; align-items: start;
grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)) }
.halves > div { min-width: 0 }
.players { display: grid; gap: .5rem } .links { margin: .3rem 0 } .links a { margin-right: 1.2rem }
progress { width: 100%; height: 1rem; accent-color: var(--accent) } a { color: var(--accent) }
@media (prefers-color-scheme: dark) { :root { --accent: #7aa5ff } }
audio { width: 100%; min-width: 11rem; height: 2.2rem } .cards { display: grid; gap: 1rem;
grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)) } figure { margin: 0 }
figcaption { font-size: .9rem; opacity: .8; margin: .3rem 0 }
code, pre { font-family: ui-monospace, monospace; font-size: .9em } pre { background: var(--soft);
padding: .8rem 1rem; border-radius: 6px; overflow-x: auto }
.warn { border-left: 4px solid #d97706; padding: .3rem .9rem; background: var(--soft) }
"""


def text(value: object) -> str:
    """Escaped text."""
    return html.escape(str(value))


def paragraph(value: str, kind: str = "") -> str:
    """A paragraph; `kind` is "", "lead", "note" or "warn"."""
    return Markup(f'<p class="{kind}">{text(value)}</p>' if kind else f"<p>{text(value)}</p>")


def quote(value: str) -> str:
    """What is said in a clip."""
    return Markup(f"<blockquote>{text(value)}</blockquote>")


def details(summary: str, content: str) -> str:
    """Markup that opens when its summary is clicked."""
    return Markup(f"<details><summary>{text(summary)}</summary>{content}</details>")


def strong(value: object) -> str:
    """A number or text that stands out in its row."""
    return Markup(f"<b>{number(value)}</b>")


def with_note(value: object, note: object) -> str:
    """A number or text with a smaller line below it."""
    return Markup(f"{number(value)} <small>{text(note)}</small>")


def code(lines: str) -> str:
    """A block of commands."""
    return Markup(f"<pre>{text(lines)}</pre>")


def number(value: object) -> str:
    """Numbers to four significant digits; a missing one as a dash."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        return "–" if value is None else text(value)
    if not np.isfinite(value):
        return "–"
    return f"{value:,}" if isinstance(value, (int, np.integer)) else f"{value:.4g}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table whose cells are numbers, plain text, or ready markup from this module."""

    def cell(value):
        return value if isinstance(value, Markup) else number(value)

    head = "".join(f"<th>{text(h)}</th>" for h in header)
    body = "".join("<tr>" + "".join(f"<td>{cell(v)}</td>" for v in row) + "</tr>" for row in rows)
    return Markup(
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


class Markup(str):
    """Text that is already HTML."""


def picture(figure, caption: str = "", *, chart: bool = True) -> str:
    """A matplotlib figure as an inline PNG; closes the figure.

    A `chart`, dark on white, is turned to light on dark where the reader's screen is; anything else
    is shown as it is, on the page's own ground.
    """
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", transparent=not chart)
    plt.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    kind = ' class="chart"' if chart else ""
    tag = f'<img{kind} alt="{text(caption)}" src="data:image/png;base64,{data}">'
    return Markup(f"<figure>{tag}<figcaption>{text(caption)}</figcaption></figure>")


def player(wav: np.ndarray, sample_rate: int, caption: str = "") -> str:
    """float [N] as an inline FLAC player."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wav, -1, 1), sample_rate, format="FLAC", subtype="PCM_16")
    data = base64.b64encode(buffer.getvalue()).decode()
    tag = f'<audio controls preload="none" src="data:audio/flac;base64,{data}"></audio>'
    return Markup(f"<figure><figcaption>{text(caption)}</figcaption>{tag}</figure>")


def cards(items: Iterable[str]) -> str:
    """Figures side by side, as many as fit."""
    return Markup(f'<div class="cards">{"".join(items)}</div>')


def tiles(items: Iterable[tuple[str, object, str]]) -> str:
    """Headline numbers: (what it is, the number or text, a smaller line below it)."""
    cells = (
        f'<div class="tile"><span>{text(title)}</span><b>{number(value)}</b>'
        f"<small>{text(note)}</small></div>"
        for title, value, note in items
    )
    return Markup(f'<div class="tiles">{"".join(cells)}</div>')


def halves(left: str, right: str) -> str:
    """Two things side by side, below each other on a phone."""
    return Markup(f'<div class="halves"><div>{left}</div><div>{right}</div></div>')


def players(items: Iterable[str]) -> str:
    """Players below each other."""
    return Markup(f'<div class="players">{"".join(items)}</div>')


def links(targets: Iterable[tuple[str, str]]) -> str:
    """(words, relative address) in a row; nothing where there are none."""
    found = [f'<a href="{text(quoted(where))}">{text(words)}</a>' for words, where in targets]
    return Markup(f'<p class="links">{"".join(found)}</p>' if found else "")


def quoted(path: str) -> str:
    """A relative path as an address: names of files may hold anything."""
    return urllib.parse.quote(path, errors="surrogateescape")


def progress(share: float, note: str) -> str:
    """A bar, filled to `share` of 1, with a line below it."""
    bar = f'<progress max="1" value="{min(max(share, 0.0), 1.0):.4f}"></progress>'
    return Markup(f'{bar}<p class="note">{text(note)}</p>')


def page(
    title: str, lead: str, sections: Iterable[tuple[str, str]], first: str = "", refresh: int = 0
) -> str:
    """The whole page: `first` is what stands above the sections (heading, markup).

    `refresh`: seconds after which a browser asks for it again; 0 for never.
    """
    body = "".join(f"<h2>{text(heading)}</h2>{content}" for heading, content in sections)
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{again}'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>"
        f'<body><h1>{text(title)}</h1><p class="lead">{text(lead)}</p>{first}{body}</body></html>'
    )


def write(
    path: str | Path, title: str, lead: str, sections: Iterable[tuple[str, str]], first: str = ""
) -> Path:
    """Writes a `page` atomically."""
    path = Path(path)
    with files.replacing(path) as partial:
        # Names of files need not be text.
        content = page(title, lead, sections, first)
        partial.write_text(content, encoding="utf-8", errors="backslashreplace")
    return path
