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

PINNED = {
    "mini": "1c1c03e33a10c05e",
    "mini-0.1": "9eb4593ca4c79b68",
}
"""Tokens on users' disks name the codec by this digest: weights of a name never change."""


@pytest.fixture(scope="module")
def mini():
    return llmcodec_jax.load_codec("mini")


@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_small_and_has_a_model_card(name):
    assert sum(path.stat().st_size for path in SHIPPED[name].iterdir()) <= 12e6
    card = (SHIPPED[name] / "README.md").read_text()
    for part in ("Data", "Licence", "Numbers", "Limits"):
        assert f"## {part}" in card


@pytest.mark.parametrize("name", SHIPPED)
def test_its_weights_are_those_the_name_stands_for(name):
    assert llmcodec_jax.load_codec(name).digest == PINNED[name]


@pytest.mark.parametrize(("name", "codes"), [("mini", 8192), ("mini-0.1", 1024)])
def test_it_codes_at_the_rate_it_says(name, codes):
    codec = llmcodec_jax.load_codec(name)
    assert (codec.sample_rate, codec.frame_rate, codec.codebook_size) == (16_000, 50, codes)
    clips = [babble(1.3, 5), babble(0.4, 6)]
    found = codec.encode(clips, RATE)
    assert [len(c) for c in found] == [65, 20]
    assert all(len(np.unique(c)) > 5 for c in found)
    assert len(codec.decode(found[0])) == 65 * 320


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


@pytest.mark.parametrize(
    ("folder", "stoi", "mel"), [("prompts_en", 0.85, 0.92), ("librispeech_voices", 0.82, 1.0)]
)
def test_held_out_speech_is_intelligible(mini, folder, stoi, mel):
    """On recordings that its training left out, the second ones of voices it never heard."""
    place = Path(os.environ.get("LLMCODEC_SHARED", Path(__file__).parents[3] / "shared")) / "data"
    if not place.is_dir():
        pytest.skip(f"no speech at {place}: set LLMCODEC_SHARED")
    names = json.loads((SHIPPED["mini"] / "heldout.json").read_text())[folder][:12]
    found = {p.stem: p for p in (place / folder).rglob("*.opus")}
    rows = []
    for name in names:
        wav = audio.load(found[name], RATE)[: 6 * RATE]
        made = mini.decode(mini.encode(wav, RATE))[: len(wav)]
        rows.append(quick_metrics(wav, made, RATE))
    assert np.nanmean([row["stoi"] for row in rows]) > stoi
    assert np.nanmean([row["mel"] for row in rows]) < mel
