"""The rate curve: a residual codec at each number of its levels, kept and not measured twice."""

import json
import shutil

import numpy as np
import pytest

from llmcodec_jax import audio
from llmcodec_jax.codec import store
from llmcodec_jax.evaluation import token_lm
from llmcodec_jax.study import rates
from tests.codec.families import EXAMPLES
from tests.tiny import RATE, babble, init


@pytest.mark.slow
def test_every_number_of_levels_is_measured_once(tmp_path, monkeypatch, capsys):
    module = EXAMPLES["auv_levels"]
    store.save_codec_folder(tmp_path / "codec", module, init(module))
    for number in range(12):
        audio.write(tmp_path / "clips" / f"{number}.wav", babble(0.8, number), RATE)
    output = tmp_path / "out" / "rates.json"
    command = [f"small={tmp_path / 'codec'}", "--data", str(tmp_path / "clips")]
    command += ["--output", str(output), "--clips", "3"]
    command += "--steps 2 --width 32 --layers 1 --batch 4 --seeds 1 --seconds 0.5".split()
    assert rates.main(command) == 0
    points = json.loads(output.read_text())["curves"]["small"]
    assert [point["levels"] for point in points] == [1, 2]
    assert points[1]["bits_per_second"] == pytest.approx(2 * points[0]["bits_per_second"])
    for point in points:
        assert 0 < point["lm_bits_per_second"] < 2 * point["bits_per_second"]
        assert point["mel"] > 0
        assert point["wer"] is None
    assert points[0]["mel"] != points[1]["mel"]  # the second level is heard
    assert output.with_suffix(".png").stat().st_size > 10_000
    assert "small 2 levels" in capsys.readouterr().out

    def twice(*_):
        raise AssertionError("a finished point was measured again")

    monkeypatch.setattr(token_lm, "report", twice)
    assert rates.main(command) == 0
    assert json.loads(output.read_text())["curves"]["small"] == points
    assert rates.main([*command, "--steps", "3"]) == 2  # another protocol: refused, not mixed
    assert rates.main([*command, "--levels", "2", "7"]) == 0
    assert json.loads(output.read_text())["curves"]["small"] == points[1:]
    shutil.rmtree(tmp_path / "out")
    assert rates.main([str(tmp_path / "codec"), *command[1:]]) == 2  # a curve needs a name


def test_the_figure_leaves_out_what_was_not_measured():
    point = {
        "levels": 1,
        "bits_per_second": 500,
        "lm_bits_per_second": 400,
        "mel": 1.0,
        "stoi": 0.8,
    }
    curves = {"one": [point | {"wer": None}], "two": [point | {"wer": None}]}
    seeds = {name: [curve] for name, curve in curves.items()}
    assert len(rates.figure(curves, seeds).axes) == 2
    curves["two"][0]["wer"] = 0.2
    assert len(rates.figure(curves, seeds).axes) == 3


def test_the_seeds_of_a_codec_are_drawn_as_their_mean():
    def seed(stoi, wer):
        return [{"levels": 1, "stoi": stoi, "wer": wer}, {"levels": 2, "stoi": 0.9, "wer": wer}]

    assert rates.mean_of([seed(0.6, None), seed(0.8, 0.5)]) == [
        {"levels": 1, "stoi": pytest.approx(0.7), "wer": None},
        {"levels": 2, "stoi": 0.9, "wer": None},
    ]


def test_clips_held_out_are_tested_on_alone(tmp_path):
    class Echo:
        sample_rate, codebook_size, levels, frame_rate = RATE, 7, 1, 50.0

        def encode(self, wav, sample_rate):
            return np.zeros(len(wav) // 320, np.int32)

    for folder, number in (("data", 5), ("apart", 4)):
        for name in range(number):
            audio.write(tmp_path / folder / f"{name}.wav", babble(0.2, name), RATE)
    streams = rates.code(Echo(), tmp_path / "data", tmp_path / "apart")
    training, development, test = streams.split()
    assert training == ["0", "1", "2", "3", "4"]
    assert sorted(development + test) == [f"heldout/{name}" for name in range(4)]
    assert rates.code(Echo(), tmp_path / "data", None).held_out is None
