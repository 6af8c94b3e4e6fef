"""The static page: a codec that runs wholly in a real browser, served by a plain file server."""

import functools
import http.server
import json
import shutil
import threading

import numpy as np
import pytest

import llmcodec_jax
from llmcodec_jax import audio, export
from tests.browser import chromium, wait_for
from tests.conftest import RATE, babble

pytest.importorskip("onnxruntime", reason="pip install onnx onnxruntime")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("npm"), reason="npm fetches the browser's runtime")
def test_the_browser_gives_pythons_codes_faster_than_real_time(tmp_path):
    site = tmp_path / "site"
    assert export.main(["--codec", "mini", "--format", "web", "--output", str(site)]) == 0
    wav = babble(4.0, 7)
    audio.write(tmp_path / "clip.wav", wav, RATE)
    heard, _ = audio.read(tmp_path / "clip.wav")
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with chromium() as driver:
            driver.get(f"http://localhost:{server.server_address[1]}/")
            wait_for(driver, "document.getElementById('status').textContent === 'ready'")
            for turn in range(2):  # the first time the graphs are loaded
                driver.find_element("id", "file").send_keys(str(tmp_path / "clip.wav"))
                wait_for(driver, "document.getElementById('status').textContent === ''", 120)
                codes = json.loads(
                    wait_for(driver, "document.querySelectorAll('article')[1]?.dataset.codes", 120)
                )
                facts = driver.execute_script(
                    "return document.querySelectorAll('.facts')[1].textContent"
                )
                print(f"turn {turn}: {facts}")
                driver.execute_script("document.getElementById('file').value = ''")
            elsewhere = driver.execute_script(
                "return performance.getEntriesByType('resource').map((e) => new URL(e.name).host)"
            )
            severe = [line for line in driver.get_log("browser") if line["level"] == "SEVERE"]
        server.shutdown()
    np.testing.assert_array_equal(codes, llmcodec_jax.load_codec("mini").encode(heard[:, 0], RATE))
    assert not severe
    assert {host.partition(":")[0] for host in elsewhere} <= {"localhost", ""}
    assert float(facts.split(" x real time")[0].rpartition(" ")[2]) > 1
