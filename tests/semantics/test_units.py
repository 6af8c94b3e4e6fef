"""Units of a speech encoder: learnt, saved, used as a codec without a decoder."""

import json

import jax
import numpy as np
import pytest

from llmcodec_jax import audio, evaluate
from llmcodec_jax.codec.layout import LayoutError
from llmcodec_jax.evaluation import streams
from llmcodec_jax.semantics import published, units
from llmcodec_jax.semantics.encoder import SpeechEncoder
from tests.tiny import RATE, babble

TINY = SpeechEncoder(
    conv_channels=(8,) * 7, width=16, layers=2, heads=2, ffn_width=24, position_kernel=8,
    position_groups=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    variables = jax.jit(TINY.init)(jax.random.key(0), np.zeros((1, 4000), np.float32))
    published.save(folder, TINY, jax.device_get(variables))
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for number in range(4):
        audio.write(folder / f"{number}.wav", babble(1.0 + 0.3 * number, number), RATE)
    return folder


def test_the_command_makes_units_that_encode_like_a_codec(encoder, clips, tmp_path, capsys):
    given = ["--encoder", str(encoder), "--layer", "1", "--clusters", "6", "--data", str(clips)]
    assert units.main([*given, "--output", str(tmp_path)]) == 0
    made = units.load_units(tmp_path)
    wav = babble(1.3, 1)
    codes = made.encode(wav, RATE)
    assert codes.dtype == np.int32
    assert codes.shape == (TINY.frames(len(wav)),)
    assert 0 <= codes.min() <= codes.max() < made.codebook_size == 6
    both = made.encode([wav, babble(2.5, 3)], RATE)
    np.testing.assert_array_equal(both[0], codes)
    stream, left_out = streams.from_codec(made, clips)
    assert not left_out
    assert stream.codebook_size == 6
    assert stream.tokens_per_second == 50
    with pytest.raises(ValueError, match="carry no sound"):
        made.decode(codes)


def test_each_frame_takes_the_closest_centre():
    rng = np.random.default_rng(0)
    features, centres = rng.normal(size=(40, 5)), rng.normal(size=(7, 5))
    distance = ((features[:, None] - centres) ** 2).sum(-1)
    np.testing.assert_array_equal(units.nearest(features, centres), distance.argmin(1))


def test_clusters_are_found():
    rng = np.random.default_rng(1)
    true = 10 * rng.normal(size=(5, 4))
    frames = true[rng.integers(0, 5, 600)] + 0.1 * rng.normal(size=(600, 4))
    centres = units.fit([frames[:300], frames[300:]], 5)
    distance = np.linalg.norm(true[:, None] - centres, axis=-1)
    assert sorted(distance.argmin(1)) == list(range(5))
    assert distance.min(1).max() < 0.1


def test_long_audio_is_taken_in_pieces(encoder):
    features = units.Features(*published.load(encoder), 2)
    wav = np.tile(babble(2.0, 5), 16)  # 32 s: a piece of 30 and one of 2
    whole = features(wav, RATE)
    piece = 30 * RATE
    assert len(whole) == TINY.frames(piece) + TINY.frames(len(wav) - piece)
    np.testing.assert_allclose(whole[-TINY.frames(2 * RATE) :], features(wav[piece:], RATE))


def test_bad_input_is_answered_in_words(encoder, clips, tmp_path, capsys):
    given = ["--encoder", str(encoder), "--data", str(clips), "--output", str(tmp_path / "u")]
    with pytest.raises(SystemExit, match="2"):
        units.main([*given, "--layer", "3"])
    assert "has 0 to 2" in capsys.readouterr().err
    assert units.main([*given, "--layer", "1", "--clusters", "100000"]) == 1
    assert "too few" in capsys.readouterr().err
    units.save_units(tmp_path, str(encoder), 1, np.zeros((3, 5), np.float32))
    with pytest.raises(LayoutError, match=r"not finite \[K, 16\]"):
        units.load_units(tmp_path)
    (tmp_path / "units.json").write_text("{")
    with pytest.raises(LayoutError, match="not a readable folder of units"):
        units.load_units(tmp_path)


def test_units_are_a_rival_in_token_lm_and_salmon(encoder, clips, tmp_path, capsys):
    """The commands that the module's docstring names, a step of each."""
    made = tmp_path / "units"
    given = ["--encoder", str(encoder), "--layer", "1", "--clusters", "6", "--data", str(clips)]
    assert units.main([*given, "--output", str(made)]) == 0
    small = ["--steps", "1", "--width", "64", "--layers", "1", "--batch", "2", "--seconds", "0.5"]
    small += ["--seeds", "1", "--probes", "0", "--evaluations", "1"]
    command = ["token_lm", "--codec", str(made), "--data", str(clips), *small]
    command += ["--save-lm", str(tmp_path / "lm"), "--output", str(tmp_path / "t.json")]
    assert evaluate.main(command) == 0
    report = json.loads((tmp_path / "t.json").read_text())
    assert report["stream"]["codebook_size"] == 6
    assert report["reconstruction"] is None
    for number in range(2):
        for kind in ("a", "b"):
            wav = babble(0.8, 10 * number + len(kind + "a" * (kind == "b")))
            audio.write(tmp_path / "suite" / "part" / f"sample_{number}_{kind}.wav", wav, RATE)
    pairs = ["--data", str(tmp_path / "suite"), "--codec", str(made), "--lm", str(tmp_path / "lm")]
    assert evaluate.main(["salmon", *pairs, "--output", str(tmp_path / "s.json")]) == 0
    assert json.loads((tmp_path / "s.json").read_text())["parts"]["part"]["pairs"] == 2
    folder = ["--reference", str(clips), "--codec", str(made)]
    assert evaluate.main(["reconstruction", *folder]) == 2
    assert "units carry no sound" in capsys.readouterr().err
