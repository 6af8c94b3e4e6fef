"""The report of generated speech."""

import json

import numpy as np
import pytest

from llmcodec_jax import audio, evaluate, load_codec
from llmcodec_jax.evaluation import additional, generated, generated_page
from llmcodec_jax.evaluation.reports import EvaluationError
from tests.browser import chromium, wait_for
from tests.tiny import babble

ABSENT = additional.absent(["speaker"])


def test_rows_are_matched_and_what_is_missing_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(additional.OPTIONAL, "wer", {"a_module_of_nobody": "its-package"})
    for name in ("v1", "v2", "out/a"):
        audio.write(tmp_path / f"{name}.wav", babble(0.6, len(name)), 16000)
    rows = [{"id": "a", "text": "x", "voice": str(tmp_path / "v1.wav")}, {"id": "b", "text": "y"}]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "r.json"
    given = ["--list", str(tmp_path / "l.jsonl"), "--audio", str(tmp_path / "out")]
    command = ["generated", *given, "--output", str(output), "--additional", "wer"]
    assert evaluate.main(command) == 1
    assert "pip install its-package" in capsys.readouterr().out
    report = json.loads(output.read_text())
    assert report["clips"] == 1
    assert list(report["failed"]) == ["b"]
    assert report["absent"]["wer"] == "a_module_of_nobody not installed: pip install its-package"


def test_a_stranger_is_another_voice():
    assert generated._strangers(["a", "a", None, "b"]) == ["b", "b", "b", "a"]
    assert generated._strangers(["a", None]) == [None, "a"]


def test_loops_and_repeats_of_codes():
    said = np.arange(20)
    assert generated.loops(said) == generated.repeats(said) == 0
    assert generated.loops(np.tile(said, 3)) == pytest.approx(1 - 20 / 56)
    stuck = np.repeat([1, 2], 50)
    assert generated.repeats(stuck) == pytest.approx(98 / 99)
    assert np.isnan(generated.loops(stuck))  # two codes once the repeats are gone: no run of five
    levels = np.stack([said, said // 2], axis=1)
    assert generated.repeats(levels) == 0


def test_a_continuation_is_held_against_the_recording(tmp_path):
    codec = load_codec("mini")
    path = tmp_path / "clip.wav"
    audio.write(path, babble(4.0, 1), 16000)
    spoken = np.concatenate([babble(1.0, 1), np.tile(babble(0.2, 2), 10)])
    audio.write(tmp_path / "out" / "a.wav", spoken, 16000)
    rows = [{"id": "a", "continue": str(path)}]
    report = generated.evaluate(rows, tmp_path / "out", (), prompt_seconds=1.0, codec=codec)
    values = report["items"]["a"]
    assert values["loops"] > values["loops_original"]
    audio.write(path, babble(1.5, 1), 16000)  # goes on for half a second: too short to compare
    report = generated.evaluate(rows, tmp_path / "out", (), prompt_seconds=1.0, codec=codec)
    assert report["items"]["a"] == {}


def test_pooled_rates_weigh_words():
    items = [{"wer": 1.0, "words": 1}, {"wer": 0.0, "words": 3}, {"speaker": 0.5}]
    assert generated.pooled(items) == {"wer": pytest.approx(0.25), "words": 4}
    assert generated.pooled([{"speaker": 0.5}]) == {}


def spoken(items):
    """A report of these items, as `generated.evaluate` makes it."""
    numbers = [generated._numbers(item) for item in items.values()]
    report = generated.summarise_columns(numbers) | {"clips": len(items), "failed": {}}
    return report | {"items": items, "pooled": generated.pooled(list(items.values())), "absent": {}}


def test_systems_are_paired_by_clip_and_by_seed():
    words = {"a": 2, "b": 6}
    one, other = (
        spoken({name: {"wer": rate + k, "words": words[name]} for k, name in enumerate(words)})
        for rate in (0.0, 0.5)
    )
    compared = generated_page.compare({"x": [one], "y": [other]})
    assert compared["over"] == "clips"
    assert compared["mean"]["x"]["wer"] == [0.5, one["interval"]["wer"]]
    change = compared["difference"]["y"]["wer"]
    assert (change["mean"], change["half_width"], change["pairs"]) == (0.5, 0.0, 2)
    assert change["p"] == 0
    assert generated_page.compare({"x": [one], "y": [one]})["difference"]["y"]["wer"]["p"] == 1

    compared = generated_page.compare({"x": [one, other], "y": [other, other]})
    assert compared["over"] == "seeds"
    assert compared["mean"]["x"]["wer"][0] == pytest.approx(1.0)  # pooled: 0.75 and 1.25
    assert compared["difference"]["y"]["wer"]["mean"] == pytest.approx(0.25)
    with pytest.raises(EvaluationError, match="as many folders of each"):
        generated_page.compare({"x": [one], "y": [one, other]})


def two_systems(tmp_path):
    """Voice, requests and what systems p and q said, q only half -> options of the command."""
    for name in ("v", "p/a", "p/b", "q/a"):
        audio.write(tmp_path / f"{name}.wav", babble(0.6, len(name)), 16000)
    rows = [
        {"id": "a", "text": "first <words>", "voice": str(tmp_path / "v.wav")},
        {"id": "b", "text": "second"},
    ]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [f"{name}={tmp_path / name}" for name in "pq"]
    shared = ["generated", "--list", str(tmp_path / "l.jsonl"), "--additional", ""]
    return [*shared, "--output", str(tmp_path / "r.json")], ["--audio", *given]


def test_several_systems_make_a_page_to_listen_to(tmp_path, capsys):
    shared, given = two_systems(tmp_path)
    output = tmp_path / "r.json"
    assert evaluate.main([*shared, *given]) == 1  # q lacks b
    report = json.loads(output.read_text())
    assert set(report) == {"systems", "over", "mean", "difference"}
    page = output.with_suffix(".html").read_text()
    assert page.count("<audio") == 4  # the voice, p and q for a; p alone for b
    assert "first &lt;words&gt; (a)" in page
    assert "q/b: no .wav or .flac" in page
    assert evaluate.main([*shared, "--audio", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no folder" in capsys.readouterr().err
    assert evaluate.main([*shared, *given, given[1]]) == 2  # told before anything is heard
    assert "as many folders of each" in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_plays_in_a_browser(tmp_path):
    shared, given = two_systems(tmp_path)
    evaluate.main([*shared, *given])
    with chromium(width=400) as driver:
        driver.get(f"file://{tmp_path / 'r.html'}")
        driver.execute_script("document.querySelectorAll('audio').forEach(a => a.load())")
        every = "[...document.querySelectorAll('audio')]"
        wait_for(driver, f"{every}.every(a => Math.abs(a.duration - 0.6) < 0.01)")
        # Nothing but the tables scrolls sideways on a phone.
        wide = "document.documentElement.scrollWidth > window.innerWidth"
        assert not driver.execute_script(f"return {wide}")
        assert driver.get_log("browser") == []
