import json
from pathlib import Path

import numpy as np
import pytest

from llmcodec_jax import audio, evaluate
from llmcodec_jax.evaluation import comparison, comparison_first, reconstruction, reports


def _reports(folder, flags=()):
    """One report of every kind, small."""
    rows = [
        {
            "name": f"{kind}/{i}.wav",
            "seconds": 1.0,
            "metrics": {"mel": 0.5 + i, "stft": 1.0, "waveform": 0.1, "pesq": None, "stoi": 0.9},
            "additional": {"si_sdr": 3.0, "mcd": 4.0},
        }
        for kind in ("speech", "music")
        for i in range(2)
    ]
    score = {"accuracy": 0.75, "interval": [0.6, 0.9]}
    spread = {"mean": 5.0, "deviation": 0.1, "values": [5.0]}
    lm = {"nats_per_token": spread, "bits_per_second": spread, "gain_over_unigram": 1.25}
    content = {
        "reconstruction": reconstruction.summarise(rows) | {"absent": {"f0corr": "no parselmouth"}},
        "token_lm": {
            "protocol": {"steps": 3},
            "stream": {"codebook_size": 512, "bits_per_second": 450.0},
            "unigram": {"entropy": 6.0, "effective": 0.8},
            "small_lm": lm,
            "pretrained_lm": None,
            "reconstruction": {"mel": 0.7123},
            "flags": list(flags),
        },
        "salmon": {
            "parts": {"gender_consistency": {"pairs": 9, "summed": score, "normalised": score}}
        },
        "consistency": {"mean": {"reencoded": 0.3}, "interval": {"reencoded": None}},
    }
    folder.mkdir()
    for name, report in content.items():
        reports.write_json(folder / f"{name}.json", report)
    return ",".join(str(folder / f"{name}.json") for name in content)


def test_page_shows_everything_and_needs_nothing(tmp_path):
    wav = 0.1 * np.sin(np.arange(8000) / 9)
    for side in ("reference", "one", "two"):
        audio.write(tmp_path / side / "speech" / "0.wav", wav, 16000)
    output = tmp_path / "page.html"
    command = [
        "compare",
        f"first={_reports(tmp_path / 'a')}",
        f"second={_reports(tmp_path / 'b', ['collapsed: uses 3 of 512 codes'])}",
        f"--reference={tmp_path / 'reference'}",
        f"--output={output}",
        "--audio",
        f"first={tmp_path / 'one'}",
        f"second={tmp_path / 'two'}",
    ]
    assert evaluate.main(command) == 0
    page = output.read_text()
    for heading in ("Reconstruction", "Token predictability", "Coherence", "Consistency"):
        assert f"<h2>{heading}</h2>" in page
    for shown in (
        "first",
        "second",
        "pesq is undefined on 4 clips",
        "f0corr absent, no parselmouth",
        "collapsed: uses 3 of 512 codes",
        "unigram entropy",
        "code use",
        "0.712",
        "75.0% [60%–90%]",
        "5.000 ± 0.100",
    ):
        assert shown in page, shown
    assert page.count("<audio") == 6, "on the first screen and below"
    assert "http" not in page
    assert "<script" not in page
    assert set(json.loads(output.with_suffix(".json").read_text())) == {"first", "second"}


def test_unknown_reports_are_refused(tmp_path, capsys):
    (tmp_path / "x.json").write_text('{"something": 1}')
    assert evaluate.main(["compare", f"a={tmp_path / 'x.json'}"]) == 2
    assert "x.json" in capsys.readouterr().err
    assert evaluate.main(["compare", "justaname"]) == 2


def test_transcripts_stand_beside_the_players(tmp_path):
    wav = 0.1 * np.sin(np.arange(8000) / 9)
    for side in ("reference", "one"):
        for name in ("1-1-0001", "take [2]"):
            audio.write(tmp_path / side / f"{name}.wav", wav, 16000)
    (tmp_path / "reference" / "take [2].txt").write_text("what is <said>\n")
    (tmp_path / "reference" / "1-1.trans.txt").write_text("1-1-0001 THE OTHER ONE\n")
    folders = {"one": tmp_path / "one", "two": tmp_path / "nowhere"}
    page = comparison.listening(tmp_path / "reference", folders)
    assert "what is &lt;said&gt; (take [2].wav)" in page
    assert "THE OTHER ONE (1-1-0001.wav)" in page
    assert page.count("<audio") == 4
    assert page.count("not there of two") == 2


def test_codecs_scored_on_different_clips_are_told(tmp_path):
    codecs = {
        name: comparison.read([Path(p) for p in _reports(tmp_path / name).split(",")])
        for name in ("a", "b")
    }
    page = comparison.write(tmp_path / "page.html", codecs, None, {}).read_text()
    assert "different clips" not in page
    del codecs["b"]["reconstruction"]["items"]["music/0.wav"]
    codecs["b"]["reconstruction"]["failed"] = {"music/0.wav": "music/0.wav: truncated"}
    page = comparison.write(tmp_path / "page.html", codecs, None, {}).read_text()
    assert "scored on different clips. 3 are shared; a has 1 others." in page
    assert "b: 1 clips could not be scored, such as music/0.wav" in page


def test_what_could_have_bought_the_nats_stands_beside_them(tmp_path):
    files = [Path(p) for p in _reports(tmp_path / "a").split(",")]
    older, newer = comparison.read(files), comparison.read(files)
    newer["token_lm"]["unigram"]["repeats"] = 0.25
    found = {"share": 0.5, "interval": [0.4, 0.6], "probes": 128}
    newer["token_lm"]["small_lm"]["look_ahead"] = found
    codecs = {"older": older, "newer": newer}
    page = comparison.write(tmp_path / "page.html", codecs, None, {}).read_text()
    assert "<td>–</td><td>25.0%</td>" in page
    assert "<td>–</td><td>50% [40%–60%]</td>" in page


@pytest.mark.parametrize("value", [None, 1.5])
def test_json_stays_strict(tmp_path, value):
    reports.write_json(tmp_path / "a.json", {"x": value})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": value}
    with pytest.raises(ValueError, match="not JSON compliant"):
        reports.write_json(tmp_path / "a.json", {"x": float("nan")})


def test_speed_and_latency_stand_beside_each_other(tmp_path):
    def report(name, device="cpu, 2 processors", **stream):
        speed = {"1": {"encode_cpu": 0.5, "decode_cpu": 0.25}}
        made = {"device": device, "dtype": "float32", "seconds": 2.0, "speed": speed, **stream}
        (tmp_path / f"{name}.json").write_text(json.dumps(made))
        return f"{name}={tmp_path / name}.json"

    live = report("live", stream={"latency": 0.08, "start": 0.093, "cpu": 0.4})
    page = tmp_path / "page.html"
    assert evaluate.main(["compare", live, report("still"), "--output", str(page)]) == 0
    text = page.read_text()
    assert all(cell in text for cell in ("0.25", "0.125"))  # CPU seconds for a second
    assert all(cell in text for cell in ("<td>80</td>", "<td>93</td>", "–"))
    assert "not comparable" not in text
    other = report("other", device="another")
    assert evaluate.main(["compare", live, other, "--output", str(page)]) == 0
    assert "not comparable" in page.read_text()


def _codec(mel, half, **report):
    return {"reconstruction": {"mean": {"mel": mel}, "interval": {"mel": half}, **report}}


def test_the_first_screen_names_a_leader_only_where_intervals_lie_apart():
    apart = {"a": _codec(0.5, 0.1), "b": _codec(0.9, 0.1), "c": _codec(None, None)}
    assert comparison_first.best(apart, "mel distance") == "a"
    assert comparison_first.verdict(apart).startswith("a leads in mel distance:")
    close = {"a": _codec(0.5, 0.1), "b": _codec(0.6, 0.1)}
    assert comparison_first.best(close, "mel distance") is None
    assert "no intervals lie apart" in comparison_first.verdict(close)
    assert comparison_first.verdict({"a": close["a"]}).startswith("a alone")
    unknown = {"a": _codec(0.5, None), "b": _codec(0.9, 0.1)}
    assert comparison_first.best(unknown, "mel distance") is None


def test_a_codec_that_is_a_run_is_linked(tmp_path):
    (tmp_path / "runs/a b").mkdir(parents=True)
    (tmp_path / "runs/a b/report.html").write_text("")
    codecs = {"a": _codec(0.5, 0.1, codec=str(tmp_path / "runs/a b")), "b": _codec(1.0, 0.1)}
    page = comparison_first.links(tmp_path / "pages/comparison.html", codecs)
    assert page == '<p class="links"><a href="../runs/a%20b/report.html">a: report</a></p>'
