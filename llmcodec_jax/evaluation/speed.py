"""What `benchmarks codec --output` measured of several codecs, for their page."""

from __future__ import annotations

from llmcodec_jax.pages import html

STREAMED = (
    ("streaming latency, ms ↓", "latency", 1000),
    ("first codes after, ms ↓", "start", 1000),
    ("streaming, CPU seconds a second ↓", "cpu", 1),
)
"""Row, key of a report's `stream`, and what its seconds are multiplied by."""


def section(reports: dict[str, dict]) -> str:
    """Codec -> report, as a table; empty without any."""
    if not reports:
        return ""
    rows: list[list] = [["device", *(f"{r['device']}, {r['dtype']}" for r in reports.values())]]
    for batch in sorted({int(batch) for r in reports.values() for batch in r["speed"]}):
        for what in ("encode", "decode"):
            label = f"{what}, batch {batch}: CPU seconds a second ↓"
            rows.append([label, *(_per_second(r, batch, what) for r in reports.values())])
    for label, name, unit in STREAMED:
        cells = ((r.get("stream") or {}).get(name) for r in reports.values())
        rows.append([label, *("–" if cell is None else f"{cell * unit:.3g}" for cell in cells)])
    note = (
        "Of a second of audio, compilation apart, all cores added; – where a codec does not stream "
        "or was not measured so."
    )
    parts = [html.table(["", *reports], rows), html.paragraph(note, "note")]
    if len({(r["device"], r["dtype"], r["seconds"]) for r in reports.values()}) > 1:
        parts.append(
            html.paragraph("Measured on different machines or clips: not comparable.", "warn")
        )
    return html.Markup("".join(parts))


def _per_second(report: dict, batch: int, what: str) -> str:
    found = report["speed"].get(str(batch))
    return "–" if found is None else f"{found[f'{what}_cpu'] / report['seconds']:.3g}"
