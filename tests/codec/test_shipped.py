"""The codec that comes with the package: small, documented, and of use without any download."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import llmcodec_jax
from llmcodec_jax import audio, decode, encode
from llmcodec_jax.codec.store import SHIPPED
from llmcodec_jax.evaluation.quick import quick_metrics
from tests.tiny import RATE, babble


@pytest.fixture(scope="module")
def mini():
    return llmcodec_jax.load_codec("mini")


def test_it_is_small_and_has_a_model_card():
    assert sum(path.stat().st_size for path in SHIPPED["mini"].iterdir()) <= 12e6
    card = (SHIPPED["mini"] / "README.md").read_text()
    for part in ("Data", "Licence", "Numbers", "Limits"):
        assert f"## {part}" in card


def test_it_codes_at_the_rate_it_says(mini):
    assert (mini.sample_rate, mini.frame_rate, mini.codebook_size) == (16_000, 50, 1024)
    clips = [babble(1.3, 5), babble(0.4, 6)]
    codes = mini.encode(clips, RATE)
    assert [len(c) for c in codes] == [65, 20]
    assert all(len(np.unique(c)) > 5 for c in codes)
    assert len(mini.decode(codes[0])) == 65 * 320


def test_commands_take_its_name(tmp_path):
    audio.write(tmp_path / "in" / "a.wav", babble(1.0, 7), RATE)
    folders = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "tokens")]
    assert encode.main(["--codec", "mini", *folders]) == 0
    folders = ["--input", str(tmp_path / "tokens"), "--output", str(tmp_path / "out")]
    assert decode.main(["--codec", "mini", *folders]) == 0
    made, rate = audio.read(tmp_path / "out" / "a.wav")
    assert (len(made), rate) == (16_000, RATE)


def test_a_folder_of_that_name_is_not_hidden(tmp_path, monkeypatch, mini):
    """Only the bare name means the shipped codec."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        llmcodec_jax.load_codec("./mini/nothing")


def test_held_out_speech_is_intelligible(mini):
    """On real recordings that its training left out, named in the model card's list."""
    place = Path(os.environ.get("LLMCODEC_SHARED", Path(__file__).parents[3] / "shared")) / "data"
    if not place.is_dir():
        pytest.skip(f"no speech at {place}: set LLMCODEC_SHARED")
    names = json.loads((SHIPPED["mini"] / "heldout.json").read_text())["prompts_en"][:12]
    found = {p.stem: p for p in (place / "prompts_en").rglob("*.opus")}
    rows = []
    for name in names:
        wav = audio.load(found[name], RATE)
        made = mini.decode(mini.encode(wav, RATE))[: len(wav)]
        rows.append(quick_metrics(wav, made, RATE))
    assert np.nanmean([row["stoi"] for row in rows]) > 0.77
    assert np.nanmean([row["mel"] for row in rows]) < 1.12
