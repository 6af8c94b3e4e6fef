"""The page that follows a run: how far it is, how good so far, and that it asks again."""

import json
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest

from llmcodec_jax import audio
from llmcodec_jax.training import card, lock, summary, watch
from tests.browser import chromium, wait_for


def evaluation(step, mel):
    return {"step": step, "eval/mel": mel, "eval/code_usage": 0.5, "eval/stoi": 0.7}


def training(step):
    return {"step": step, "loss/mel": 1.0, "speed/steps_per_second": 2.0, "skipped": 0}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run <b>"
    rows = [evaluation(0, 4.0), training(0), training(99), evaluation(100, 1.0)]
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"total_steps": 400}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wav = 0.1 * np.sin(np.arange(4000) / 9)
    for step in ("0000000", "0000100"):
        for name in ("reference-0", "codec-0"):
            audio.write(folder / "heldout" / step / f"{name}.flac", wav, 16_000)
    return folder


def add(run, *rows):
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_a_run_that_goes_on_refreshes_and_one_that_ended_does_not(run):
    stopped = watch.render(run, 7)
    assert "not running: step 100 of 400; the command that started it resumes it" in stopped
    (run / lock.NAME).write_text("{}")
    page = watch.render(run, 7)
    assert '<meta http-equiv="refresh" content="7">' in page
    assert "running: step 100 of 400, about 2 min left" in page
    assert 'value="0.2500"' in page
    assert page.count("<audio") == 3
    assert "<b>1</b><small>4 at step 0" in page
    assert "Run run &lt;b&gt;" in page
    add(run, training(399), evaluation(400, 0.9))
    page = watch.render(run, 7)
    assert "finished: step 400 of 400" in page
    assert "refresh" not in page


def test_a_run_without_anything_yet_has_a_page(tmp_path):
    (tmp_path / "run.json").write_text('{"total_steps": 5}')
    assert "not running: step 0 of 5" in watch.render(tmp_path, 5)
    assert watch.main([str(tmp_path / "nothing"), "--no-browser"]) != 0


def test_the_verdict_says_what_the_rows_say():
    assert summary.verdict([]) == "Nothing was evaluated."
    assert summary.verdict([evaluation(0, 4.0)]) == (
        "Held-out mel distance 4 at step 0, code use 50%."
    )
    falling = [evaluation(100 * i, 4.0 / (i + 1)) for i in range(5)]
    assert "80% lower" in summary.verdict(falling)
    assert "It still falls: 20%" in summary.verdict(falling)
    assert "It has settled" in summary.verdict(
        [*falling[:3], evaluation(300, 1), evaluation(400, 1)]
    )
    worse = [*falling, evaluation(500, 2.0)]
    assert "best at step 400 (0.8)" in summary.verdict(worse)


def test_durations_read_well():
    assert [watch.duration(s) for s in (12, 600, 12_000)] == ["12 s", "10 min", "3 h 20 min"]


def test_pages_of_a_run_link_to_each_other(run):
    from llmcodec_jax.codec.auv.model import AUV
    from llmcodec_jax.codec.store import save_codec_folder
    from tests.tiny import SMALL, init

    assert card.write(run, []) is None
    module = AUV(**SMALL)
    save_codec_folder(run / "codec", module, init(module))
    (run / "report.html").write_text("")
    (run.parent / "comparison.html").write_text("")
    page = card.write(run, [evaluation(7, 0.25)]).read_text()
    assert '<a href="report.html">' in page
    assert '<a href="../comparison.html">' in page
    assert "Held out, step 7" in page
    assert "16,000 Hz" in page
    names = [where for _, where in card.neighbours(run, "report.html")]
    assert names == ["card.html", "../comparison.html"]


@pytest.mark.slow
def test_it_follows_in_a_browser(run):
    """Wide, phone and dark: all of it fits, and new rows appear by themselves."""
    (run / lock.NAME).write_text("{}")
    server = watch.WatchServer(run, 1, 0)
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(server.url + "run.json", timeout=10)
        with chromium() as driver:
            for width, mobile in ((1280, False), (390, True)):
                size = dict(width=width, height=844, deviceScaleFactor=1, mobile=mobile)
                driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                driver.get(server.url)
                across = "document.documentElement.scrollWidth <= innerWidth"
                assert driver.execute_script(f"return {across}"), width
                bottom = "document.querySelector('audio').getBoundingClientRect().bottom"
                assert driver.execute_script(f"return {bottom}") < 844, "heard on the first screen"
            add(run, training(199), evaluation(200, 0.75))
            wait_for(driver, "document.body.innerText.includes('step 200 of 400')", 30)
        server.shutdown()
