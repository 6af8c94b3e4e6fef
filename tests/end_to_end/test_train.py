"""Real runs of the trainer on audio of our own: every phase, interruption, the command line."""

import json
import logging
import os
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import llmcodec_jax
from configs import base, codec_pretrain, quickstart
from llmcodec_jax import export
from llmcodec_jax.codec import store
from llmcodec_jax.training import loop
from llmcodec_jax.training.run import run
from tests.tiny import WORDS, babble

STEPS = 10


def shrunk(config, tiny_lm, speech):
    """configs/base.py with nothing changed but sizes and places."""
    c = config.get_config()
    c.total_steps = STEPS
    c.init = ""
    c.codec.update(width=64, encoder_layers=1, decoder_layers=1, codebook_size=64, dtype="float32")
    c.discriminators.update(
        periods=(2,), period_channels=(4, 8), scales=1, scale_channels=(4, 8), dtype="float32"
    )
    c.lm.update(path=str(tiny_lm), begin_token=0, horizons=2, bank=4, dtype="float32")
    c.data.update(
        sources=(f"librispeech:{speech}",),
        batch_size=2,
        eval_batch_size=2,
        eval_fraction=0.2,
        clip_seconds=1.0,
        max_text=8,
    )
    c.log.update(every=1, eval_every=5, eval_clips=3, listen=2, checkpoint_every=4)
    return c


def rows(workdir) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith("speed/")} for line in lines
    ]


def assert_same_rows(first: list[dict], second: list[dict]) -> None:
    """To the last bit, held-out evaluations included (one thread computes: conftest.py)."""
    assert [row.keys() for row in first] == [row.keys() for row in second]
    for one, other in zip(first, second, strict=True):
        for name, value in one.items():
            assert other[name] == value or np.isnan([other[name], value]).all(), name


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_lm, speech):
    """An undisturbed run of the paper's config, shrunk."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    assert run(shrunk(base, tiny_lm, speech), workdir)
    return workdir


def test_base_config_shrunk_goes_through_every_phase(finished):
    steps = [row for row in rows(finished) if "loss/mel" in row]
    assert [row["step"] for row in steps] == list(range(STEPS))
    assert all(row["skipped"] == 0 for row in steps)
    frozen, moving = steps[:4], steps[4:]
    assert all(row["grad_norm/encoder"] == 0 for row in frozen)
    assert all(row["grad_norm/encoder"] > 0 for row in moving)
    assert all(row["grad_norm/ftp_heads"] > 0 and "loss/discriminator" in row for row in steps)
    assert frozen[-1]["weighted/adversarial"] == 0
    assert moving[0]["weighted/adversarial"] != 0
    assert steps[4]["weighted/sa_cosine"] == 0
    assert steps[5]["weighted/sa_cosine"] > 0
    assert steps[0]["schedule/temperature"] == 1
    assert steps[-1]["lr/encoder"] < steps[6]["lr/encoder"]


def test_evaluations_are_on_the_same_clips_and_complete(finished):
    evaluations = [row for row in rows(finished) if "eval/mel" in row]
    assert [row["step"] for row in evaluations] == [0, 5, 10]
    wanted = {"mel", "stft", "vq", "code_usage", "code_entropy", "accuracy/bridge"}
    wanted |= {"accuracy/ftp_1", "accuracy/ftp_2", "accuracy/retrieval"}
    assert wanted <= {name.removeprefix("eval/") for name in evaluations[-1]}
    first = finished / "heldout" / "0000000" / "reference-0.flac"
    last = finished / "heldout" / "0000010" / "reference-0.flac"
    assert first.read_bytes() == last.read_bytes()


def test_the_report_is_one_self_contained_file(finished):
    page = (finished / "report.html").read_text()
    # Two clips: original, first and last reconstruction; one's three on the first screen as well.
    assert page.count("<audio") == 9
    assert page.count("data:image/png") >= 4
    assert not re.search(r"src=\"(?!data:)", page)
    assert not re.search(r"href=\"[a-z]+:", page), "links lead to the run's own files alone"


def test_the_runs_codec_loads_and_codes(finished):
    codec = llmcodec_jax.load_codec(str(finished))
    codes = codec.encode(babble(0.7, 5), 16_000)
    assert codes.shape == (35,)
    assert codec.decode(codes).shape == (35 * 320,)


def test_export_takes_codec_and_language_model_out(finished, tmp_path, tiny_lm):
    """The merged model keeps every text row and the body bit for bit; the run is only read."""
    before = sorted(p.name for p in (finished / "checkpoints").iterdir())
    run = ["--run", str(finished)]
    assert export.main([*run, "--format", "auv", "--output", str(tmp_path / "auv.pt")]) == 0
    assert (
        export.main([*run, "--format", "safetensors", "--output", str(tmp_path / "c.safetensors")])
        == 0
    )
    own = store.load(str(finished))[1]["params"]
    for name in ("auv.pt", "c.safetensors"):
        params = store.load(str(tmp_path / name))[1]["params"]
        jax.tree.map(np.testing.assert_array_equal, params, own)
    assert export.main([*run, "--format", "hf", "--output", str(tmp_path / "hf")]) == 0
    text, merged = (load_file(f / "model.safetensors") for f in (tiny_lm, tmp_path / "hf"))
    words = len(WORDS) + 1
    rows = "model.embed_tokens.weight"
    assert merged[rows].shape[0] == words + 64
    np.testing.assert_array_equal(merged[rows][:words], text[rows][:words])
    for name in text.keys() - {rows}:
        np.testing.assert_array_equal(merged[name], text[name], err_msg=name)
    assert not np.array_equal(merged[rows][words:], merged["lm_head.weight"][words:])
    assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == before


@pytest.mark.slow
def test_pretraining_config_shrunk_learns_from_several_domains(tmp_path, tiny_lm, speech):
    """configs/codec_pretrain.py: no LM, nested partitions, BatchNorm and codebook learning."""
    c = shrunk(codec_pretrain, tiny_lm, speech)
    c.lm.path = ""
    c.data.sources = ((f"librispeech:{speech}", 0.5, "speech"), (f"folder:{speech}", 0.5, "music"))
    c.training.revive_every = 2
    c.schedule.update(discriminator_start=0.3, adversarial_start=0.4)
    assert run(c, tmp_path)
    steps = [row for row in rows(tmp_path) if "loss/mel" in row]
    assert len(steps) == STEPS
    assert not any(name.startswith("loss/ftp") for name in steps[-1])
    assert "loss/discriminator" not in steps[0]
    assert "loss/discriminator" in steps[-1]
    stats = store.load(str(tmp_path))[1]["batch_stats"]
    means = stats["encoder"]["conformer"]["layers"]["convolution"]["conv_norm"]["mean"]
    assert np.any(np.asarray(means))


@pytest.mark.slow
def test_quickstart_can_start_from_the_shipped_codec(tmp_path, tiny_lm, speech):
    """--config.init=mini: same architecture, and its codebook stays where it was trained."""
    sizes = quickstart.get_config().codec
    c = shrunk(quickstart, tiny_lm, speech)
    c.codec.update(sizes)
    c.init = "mini"
    c.codec.codebook_size = 8192
    c.total_steps = 1
    assert run(c, tmp_path)
    before, after = (store.load(p)[1]["params"] for p in ("mini", str(tmp_path)))
    change = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, after)
    assert max(jax.tree.leaves(change)) < 0.01
    assert rows(tmp_path)[0]["eval/mel"] < 2  # 4 and more from scratch


class InterruptAt:
    """Sends this process a real signal once a step has been looked at."""

    def __init__(self, monkeypatch, step: int):
        self._check = loop.check_finite
        self._step = step
        monkeypatch.setattr(loop, "check_finite", self)

    def __call__(self, method, step, report):
        if step == self._step:
            os.kill(os.getpid(), signal.SIGTERM)
        return self._check(method, step, report)


def test_interrupted_and_resumed_equals_undisturbed(
    finished, tmp_path, tiny_lm, speech, monkeypatch
):
    """To the last bit, and with another number of loader workers after the interruption."""
    config = shrunk(base, tiny_lm, speech)
    with monkeypatch.context() as patched:
        InterruptAt(patched, 5)
        assert not run(config, tmp_path)
    assert max(row["step"] for row in rows(tmp_path)) < STEPS - 1
    config.data.workers = 1
    assert run(config, tmp_path)
    assert_same_rows(rows(tmp_path), rows(finished))
    whole, resumed = (store.load(str(p))[1] for p in (finished, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


def test_running_a_finished_run_again_only_reports(finished, tiny_lm, speech):
    before = rows(finished)
    assert run(shrunk(base, tiny_lm, speech), finished)
    assert_same_rows(rows(finished), before)


def test_a_run_of_bad_steps_stops_with_the_names_of_the_losses(caplog):
    class Patient:
        max_bad_steps = 3

    report = {"bad_streak": np.int32(2), "loss/mel": np.nan, "loss/vq": 1.0}
    with caplog.at_level(logging.WARNING, "llmcodec_jax"):
        loop.check_finite(Patient, 7, report)
    assert "step 7 skipped, not finite: loss/mel" in caplog.text
    with pytest.raises(loop.NonFiniteError, match=r"3 steps in a row.*loss/mel"):
        loop.check_finite(Patient, 8, report | {"bad_streak": np.int32(3)})


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "llmcodec_jax.train", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.typo=1", "the config has no field typo"),
        ("--config.total_stepz=3", "no field total_stepz; did you mean total_steps?"),
        ("--config.codec.widht=3", "no field codec.widht; did you mean codec.width?"),
        ("--config.total_steps=many", "--config.total_steps=many"),
        ("--config=configs/nowhere.py", "there is no file 'configs/nowhere.py'"),
        ("--config.total_steps=-5", "total_steps must be at least 1, got -5"),
        ("--config.init=nothing", "nothing: no such codec"),
    ],
)
def test_what_cannot_be_is_one_line_at_once_and_status_2(argument, message, tmp_path):
    """Before a model is loaded or audio is fetched: the folder for both is never made."""
    place = ("--workdir", str(tmp_path / "run"), "--cache", str(tmp_path / "cache"))
    result = command("--config", "configs/quickstart.py", *place, argument)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []


def test_help_is_no_failure():
    result = command("--help")
    assert result.returncode == 0
    assert "--workdir" in result.stdout
