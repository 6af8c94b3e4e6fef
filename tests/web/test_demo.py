"""The page to try codecs on: its server as a browser talks to it, and the page in a browser."""

import contextlib
import http.client
import json
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest

import llmcodec_jax
from llmcodec_jax import audio, demo
from llmcodec_jax.codec import tokens
from llmcodec_jax.web.server import PageServer, Voice
from tests.browser import chromium, wait_for
from tests.tiny import RATE, babble


@pytest.fixture(scope="module")
def mini():
    return llmcodec_jax.load_codec("mini")


@pytest.fixture(scope="module")
def server(mini):
    with PageServer(("127.0.0.1", 0), {"mini": mini}) as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        yield served
        served.shutdown()
        thread.join()


def get(server, path, headers=()):
    request = urllib.request.Request(server.url + path, headers=dict(headers))
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.headers, answer.read()


def post(server, path, body):
    request = urllib.request.Request(server.url + path, data=body, method="POST")
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.headers, answer.read()


def refusal(call) -> str:
    with pytest.raises(urllib.error.HTTPError) as caught:
        call()
    assert caught.value.code == 400
    return caught.value.read().decode()


def test_every_file_of_the_page_is_served(server):
    headers, _ = get(server, "")
    assert headers["Content-Type"].startswith("text/html")
    for name in ("page.js", "backend.js", "draw.js", "sound.js", "recorder.js", "style.css"):
        _, body = get(server, name)
        assert len(body) > 100
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(server, "../server.py")
    (about,) = json.loads(get(server, "api/codecs")[1])
    assert (about["name"], about["sample_rate"], about["bits_per_second"]) == ("mini", RATE, 650)


def test_codes_and_sound_are_those_of_the_codec(server, mini):
    wav = babble(1.1, 3)
    headers, body = post(server, "api/encode?codec=mini&rate=16000", wav.astype("<f4").tobytes())
    codes = np.frombuffer(body, "<i4")
    np.testing.assert_array_equal(codes, mini.encode(wav, RATE))
    assert int(headers["X-Num-Samples"]) == len(wav)
    _, body = post(server, "api/decode?codec=mini", body)
    np.testing.assert_array_equal(np.frombuffer(body, "<f4"), mini.decode(codes))


def test_what_cannot_be_answered_is_said_in_words(server):
    sound = babble(0.2, 1).tobytes()
    encode = "api/encode?codec=mini&rate="
    assert "no codec 'x'" in refusal(lambda: post(server, "api/encode?codec=x&rate=16000", sound))
    assert "cannot be heard" in refusal(lambda: post(server, encode + "0", sound))
    assert "four bytes" in refusal(lambda: post(server, encode + "16000", b"abc"))
    assert "NaN" in refusal(
        lambda: post(server, encode + "16000", np.full(99, np.nan, "<f4").tobytes())
    )
    assert "empty" in refusal(lambda: post(server, encode + "16000", b""))
    wrong = np.array([0, 99_999], "<i4").tobytes()
    assert "codes reach" in refusal(lambda: post(server, "api/decode?codec=mini", wrong))


def test_a_text_is_said_where_something_speaks(server):
    assert json.loads(get(server, "api/speech")[1]) is None
    assert "--lm" in refusal(lambda: post(server, "api/speak", b"hello"))
    heard = []

    def speak(text):
        heard.append(text)
        if text == "?":
            raise ValueError("not to be said")
        return np.arange(3, dtype=np.float32)

    with PageServer(("127.0.0.1", 0), {}, Voice(speak, RATE)) as speaking:
        threading.Thread(target=speaking.serve_forever, daemon=True).start()
        assert json.loads(get(speaking, "api/speech")[1]) == {"sample_rate": RATE}
        _, body = post(speaking, "api/speak", " grüße ".encode())
        np.testing.assert_array_equal(np.frombuffer(body, "<f4"), [0, 1, 2])
        assert "not to be said" in refusal(lambda: post(speaking, "api/speak", b"?"))
        assert "write what" in refusal(lambda: post(speaking, "api/speak", b"  "))
        assert "4000 bytes" in refusal(lambda: post(speaking, "api/speak", b"a" * 5000))
        speaking.shutdown()
    assert heard == ["grüße", "?"]


def test_other_sites_get_no_answer(server):
    foreign = {"Origin": "http://elsewhere.example"}
    assert "own computer" in refusal(lambda: get(server, "api/codecs", foreign))
    rebound = {"Host": "elsewhere.example"}
    assert "own computer" in refusal(lambda: get(server, "api/codecs", rebound))
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/api/encode?codec=mini&rate=16000")
        connection.putheader("Content-Length", str(1 << 40))  # must not be waited for
        connection.endheaders()
        assert connection.getresponse().status == 400


def test_the_command_answers_bad_codecs_and_ports(capsys, server):
    assert demo.main(["--codec", "nothing", "--no-browser"]) == 2
    assert "nothing" in capsys.readouterr().err
    taken = str(server.server_address[1])
    assert demo.main(["--port", taken, "--no-browser"]) == 1
    assert "--port 0" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sound_goes_through_the_page(server, mini, tmp_path):
    wav = babble(1.5, 7)
    audio.write(tmp_path / "clip.wav", wav, RATE)
    heard, _ = audio.read(tmp_path / "clip.wav")
    with chromium() as driver:
        driver.get(server.url)
        wait_for(driver, "document.getElementById('status').textContent === 'ready'")
        driver.find_element("id", "file").send_keys(str(tmp_path / "clip.wav"))
        wait_for(driver, "document.querySelectorAll('article').length === 2")
        codes = json.loads(
            wait_for(driver, "document.querySelectorAll('article')[1].dataset.codes", 120)
        )
        np.testing.assert_array_equal(codes, mini.encode(heard[:, 0], RATE))
        seconds = wait_for(driver, "document.querySelectorAll('audio')[1].duration")
        assert abs(seconds - 1.5) < 0.01
        href = driver.execute_script(
            "return document.querySelector('a[download=\"mini.npz\"]').href"
        )
        raw = driver.execute_async_script(
            "const done = arguments[1]; fetch(arguments[0]).then((r) => r.arrayBuffer())"
            ".then((b) => done([...new Uint8Array(b)]))",
            href,
        )
        (tmp_path / "mini.npz").write_bytes(bytes(raw))
        read = tokens.read(tmp_path / "mini.npz")
        np.testing.assert_array_equal(read.codes, codes)
        assert (read.codec, read.num_samples, read.hop) == (mini.digest, len(wav), mini.hop)
        pixels = (
            "return [...arguments[0].getContext('2d').getImageData(0,0,arguments[0].width,"
            "arguments[0].height).data].some((v, i) => i % 4 < 3 && v > 0)"
        )
        for kind in ("wave", "mel", "strip"):
            canvas = driver.find_elements("css selector", f"article canvas.{kind}")[-1]
            assert driver.execute_script(pixels, canvas), kind
        driver.find_element("css selector", "canvas.strip").click()  # its middle
        wait_for(driver, "document.querySelectorAll('audio')[1].currentTime > 0.7")
        severe = [line for line in driver.get_log("browser") if line["level"] == "SEVERE"]
        assert not severe
        driver.save_screenshot(str(tmp_path / "page.png"))


@pytest.mark.slow
def test_the_microphone_is_heard(server):
    with chromium() as driver:  # Chromium's pretended microphone beeps
        driver.get(server.url)
        wait_for(driver, "document.getElementById('status').textContent === 'ready'")
        driver.find_element("id", "record").click()
        wait_for(driver, "document.getElementById('record').textContent.includes('Stop')")
        wait_for(driver, "(window.begun ??= performance.now(), performance.now() - begun > 1500)")
        driver.find_element("id", "record").click()
        wait_for(driver, "document.querySelectorAll('article')[1]?.dataset.codes", 120)
        seconds = wait_for(driver, "document.querySelectorAll('audio')[0].duration")
        assert 0.8 < seconds < 10
