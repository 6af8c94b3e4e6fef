"""report.html of a run: readable rows, and what is said beside what is heard."""

import json
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np

from llmcodec_jax import audio
from llmcodec_jax.training import report


def test_the_newest_values_come_first_with_units_and_direction(tmp_path, monkeypatch):
    rows = [
        {"step": 10 * i, "eval/stoi": 0.5 + i / 100, "eval/mel": 4.0 - i, "loss/mel": 1.0}
        | {"eval/code_usage": 0.5, "eval/pesq": None if i else 1.1, "eval/other": 7.0}
        for i in range(3)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    wav = 0.1 * np.sin(np.arange(8000) / 9)
    for step in ("0000000", "0000020"):
        for name in ("reference-0", "codec-0"):
            audio.write(tmp_path / "heldout" / step / f"{name}.flac", wav, 16_000)
    monkeypatch.setattr(report, "timetable", lambda _: plt.subplots()[0])
    method = SimpleNamespace(schedule=SimpleNamespace(total_steps=20))
    skipped = {"read": 9, "count": 1, "reasons": {"<b>.wav: truncated": 1}}
    spoken = [("voices/a", "what is <said>"), ("voices/b", "not kept")]
    page = report.write(tmp_path, method, skipped, spoken).read_text()
    assert "<th>now, step 20</th><th>step 0</th><th>best</th>" in page
    assert "<td>mel distance ↓</td><td><b>2</b></td><td>4</td><td>2 <small>step 20" in page
    assert "<td>PESQ, 1 to 4.6 ↑</td><td><b>–</b></td><td>1.1</td>" in page
    names = [page.index(f"<td>{name}") for name in ("mel distance", "PESQ", "STOI", "other")]
    assert names == sorted(names)
    assert "3 of 3 evaluations" in page
    assert "what is &lt;said&gt; (voices/a)" in page
    assert "not kept" not in page
    assert "&lt;b&gt;.wav" in page
