"""The study in miniature, shrunk: every stage for real, the page, going on after a stop."""

import json
import math
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import miniature, miniature_residual
from llmcodec_jax import audio, reproduce
from llmcodec_jax.codec import store
from llmcodec_jax.data.cache import cache_dir
from llmcodec_jax.data.packages import FetchError
from llmcodec_jax.errors import UsageError
from llmcodec_jax.evaluation.paired import difference
from llmcodec_jax.study import jobs, public_audio, results, stages
from llmcodec_jax.study.config import read_study, scale, variant_config
from llmcodec_jax.study.material import HELD_OUT, find_sources
from llmcodec_jax.training import loop
from llmcodec_jax.training.resume import differences
from tests.end_to_end.test_train import InterruptAt
from tests.tiny import RATE, WORDS, babble

PAIR = ("published", "inputs_only")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two voices with transcripts and a folder of music."""
    folder = tmp_path_factory.mktemp("study-data")
    rng = np.random.default_rng(3)
    for speaker in (1, 2):
        place, lines = folder / "voices" / str(speaker) / "1", []
        for number in range(14):
            name = f"{speaker}-1-{number:04d}"
            wav = babble(rng.uniform(1.2, 2.0), 100 * speaker + number)
            audio.write(place / f"{name}.flac", wav, RATE)
            lines.append(f"{name} {' '.join(rng.choice(WORDS, 4))}\n")
        (place / f"{speaker}-1.trans.txt").write_text("".join(lines))
    for number in range(8):
        audio.write(folder / "music" / f"tune_{number}.wav", babble(2.0, 900 + number), RATE)
    for number in range(3):
        wav = babble(1.5, 950 + number)
        audio.write(folder / "unseen_voices" / f"{number}" / f"{number}.wav", wav, RATE)
    (folder / "notes").mkdir()  # nothing to hear: no source
    return folder


def shrunk(tiny_lm, **seeds):
    c = miniature.get_config()
    for part in (c.base, c.tuned):
        part.total_steps = 6
        part.codec.update(head_dim=16, width=32, encoder_layers=1, decoder_layers=1)
        part.codec.codebook_size = 64
        part.discriminators.update(period_channels=(4, 8), scale_channels=(4, 8))
        part.data.update(batch_size=2, eval_batch_size=2, clip_seconds=1.0, eval_fraction=0.3)
        part.log.update(every=1, eval_every=3, eval_clips=3, listen=1, checkpoint_every=2)
        part.lm.update(horizons=2, bank=4)
    for taught in c.teachers.values():
        taught.update(path=str(tiny_lm), width=0, layers=3, steps=4, batch=2, horizons=2)
    c.evaluation.update(clips=2, unseen=2, pairs=2, consistency=2, lm_seeds=2, additional=())
    c.evaluation.protocol.update(probes=6, steps=4, batch=2, seconds=1.0, width=64, layers=1)
    for name, row in c.variants.items():
        row.seeds = seeds.get(name, 0)
    return c


def test_a_stage_notes_what_it_is_made_from_and_refuses_another(tiny_lm, tmp_path, monkeypatch):
    monkeypatch.setattr(stages.training, "run", lambda config, folder: True)
    config = shrunk(tiny_lm).base
    stages.train_run(config, tmp_path, (("folder:here", 1.0, "speech"),))
    stages.train_run(config, tmp_path, (("folder:moved", 1.0, "speech"),))
    # A folder of before an objective existed: it was not there, so its weight was its default.
    note = tmp_path / "inputs.json"
    before = json.loads(note.read_text())
    del before["weights"]["repeats"]
    note.write_text(json.dumps(before))
    stages.train_run(config, tmp_path, ())
    config.weights.repeats = 0.7
    with pytest.raises(UsageError, match="another weights"):
        stages.train_run(config, tmp_path, ())
    config.weights.repeats = 0.0
    config.data.augment.speed = 0.5
    with pytest.raises(UsageError, match="another data"):
        stages.train_run(config, tmp_path, ())


@pytest.mark.slow
def test_the_whole_study_stops_and_goes_on(data, tiny_lm, tmp_path, monkeypatch):
    """Interrupted in the middle of a variant; the second call trains nothing twice, two at once."""
    rows = dict(control=2, ftp_sa=2, published=1, teacher_text=1)
    config = shrunk(tiny_lm, **rows)
    with monkeypatch.context() as patched:
        InterruptAt(patched, 3)
        with pytest.raises(jobs.InterruptedRunError):
            reproduce.run(config, data, tmp_path, 1.0)
    summary = reproduce.run(shrunk(tiny_lm, **rows), data, tmp_path, 1.0, 2)
    assert {n: len(s) for n, s in summary["runs"].items()} == {
        "base": 1, "control": 2, "ftp_sa": 2, "published": 1, "teacher_text": 1,
    }  # fmt: skip
    assert summary["teachers"] == {
        "base": "", "control": "", "ftp_sa": "taught", "published": "taught",
        "teacher_text": "text",
    }  # fmt: skip
    for seeds in summary["runs"].values():
        for row in seeds.values():
            assert row["unseen"] > 0
            assert row["unseen_mel"] > 0
    main = summary["changes"]["ftp_sa"]
    assert main["nats"]["pairs"] == 2
    assert main["nats"]["half_width"] > 0
    assert main["nats"]["holm"] == main["nats"]["p"]  # the one row with an interval
    for column in ("unseen", "new", "unseen_new"):
        assert main[column]["pairs"] == 2
    assert "on tokens that repeat nothing" in summary["findings"]["ftp_sa"]
    assert "interval" in summary["findings"]["ftp_sa"]
    assert "a head start alone" in summary["findings"]["head_start"]
    assert "2 token LMs that differ in nothing but their seed" in summary["findings"]["lm_seeds"]
    assert summary["lm_seeds"]["nats"][1] > 0
    _, base = store.load(tmp_path / "base")
    _, tuned = store.load(tmp_path / "variants" / "ftp_sa-0")
    jax.tree.map(np.testing.assert_array_equal, base["batch_stats"], tuned["batch_stats"])
    assert json.loads((tmp_path / "report.json").read_text())["findings"] == summary["findings"]
    page = (tmp_path / "report.html").read_text()
    assert page.count("<audio") >= 5
    assert (tmp_path / "comparison.html").exists()

    def nothing_to_train(*_):
        raise AssertionError("a finished stage was trained again")

    monkeypatch.setattr(loop, "train", nothing_to_train)
    again = shrunk(tiny_lm, **rows)
    assert reproduce.run(again, data, tmp_path, 1.0) == summary
    again = shrunk(tiny_lm, control=1)
    again.variants.ftp_sa.seeds = 1
    again.teachers.taught.steps = 5
    with pytest.raises(ValueError, match=r"taught was made with another steps"):
        reproduce.run(again, data, tmp_path, 1.0)


@pytest.mark.slow
def test_the_smoke_budget_as_a_user_types_it(tmp_path):
    """The shipped config on the public data: the command and what it leaves, all of it real."""
    data = cache_dir() / "study-corpus"
    try:
        public_audio.build(data)
    except FetchError as error:
        pytest.skip(f"the study's data cannot be fetched here: {error}")
    command = [sys.executable, "-m", "llmcodec_jax.reproduce"]
    command += ["--config", "configs/miniature.py", "--budget", "0.05"]
    done = subprocess.run(
        [*command, "--data", str(data), "--workdir", str(tmp_path)],
        capture_output=True, text=True, timeout=3 * 3600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| ftp_sa | 1 | taught |" in done.stdout
    assert (tmp_path / "report.html").exists()
    runs = json.loads((tmp_path / "report.json").read_text())["runs"]
    assert set(runs) == {"base", "control", "ftp_sa"}
    for row in (seeds["0"] for seeds in runs.values()):
        assert row["mel"] < 2  # 4.6 before the first step
        assert row["nats"] < math.log(1024)
        assert 0 < row["coherence"] < 1


def test_sources_are_the_sub_folders(data):
    shares = {"speech": 0.9, "music": 0.1}
    sources = find_sources(data, shares)
    assert sources == (
        (f"folder:{data / 'music'}", 0.1, "music"),
        (f"librispeech:{data / 'voices'}", 0.9, "speech"),
    )
    with pytest.raises(FileNotFoundError, match="no sub-folder with audio"):
        find_sources(data / "notes", shares)
    with pytest.raises(ValueError, match="speach"):
        find_sources(data, {"speach": 1.0})


def test_token_lms_are_tested_on_clips_no_codec_saw(data, tiny_lm):
    """The token LM's development and test clips are the codecs' held-out ones, and all of them."""

    class Counter:
        codebook_size, levels, frame_rate = 7, 1, 50.0

        def encode(self, clips, rate):
            return [np.arange(len(clip) // 320) % 7 for clip in clips]

    material = stages.gather(read_study(shrunk(tiny_lm)), data)
    streams = material.streams(Counter())
    training, development, test = streams.split()
    held_out = [name for name in streams.clips if name.startswith(HELD_OUT)]
    assert len(development) == len(test) == len(held_out) // 2 > 0
    assert all(name.startswith(HELD_OUT) for name in development + test)
    assert len(training) + len(development) + len(test) == 36
    assert len(streams.unseen) == len(streams.clips) - 36 == 3
    assert all(name.startswith("unseen/") for name in streams.unseen)
    assert set(material.texts()) < set(streams.clips)


def test_unreadable_clips_are_left_out_of_tokens_and_texts(data, tiny_lm, tmp_path, capsys):
    shutil.copytree(data, tmp_path / "data")
    broken = next((tmp_path / "data" / "voices").rglob("*.flac"))
    broken.write_bytes(b"")
    material = stages.gather(read_study(shrunk(tiny_lm)), tmp_path / "data")
    names = [c.name for part in ("train", "eval") for c in material.clips(part)]
    assert len(names) == 35
    assert f"voices/{broken.stem}" not in names
    assert broken.name in capsys.readouterr().out
    assert f"train/voices/{broken.stem}" not in material.texts()


def row(nats, mel=1.0, unigram=6.0, use=0.8):
    values = dict.fromkeys(results.COLUMNS, 1.0) | {"gain": unigram - nats}
    return values | {"nats": nats, "mel": mel, "unigram": unigram, "use": use}


def test_findings_follow_from_the_numbers():
    control = {seed: row(5.0 + 0.01 * seed) for seed in range(3)}
    better = {seed: row(4.6 + 0.011 * seed, mel=1.005) for seed in range(3)}
    bought = {seed: row(4.0 + 0.01 * seed, unigram=5.0) for seed in range(3)}
    same = {0: row(5.1), 1: row(4.9), 2: row(5.05)}

    def said(runs):
        change = {c: difference(runs, control, c) for c in results.COLUMNS}
        return results.sentence("x", change), change

    text, change = said(better)
    assert "lowers nats per token by 0.399" in text
    assert "excludes zero" in text
    assert change["mel"]["relative"] == pytest.approx(0.005)
    assert "gain over unigram +0.399" in text
    assert "Codes were given up for it (unigram)" in said(bought)[0]
    assert "gain over unigram +0.000" in said(bought)[0]
    assert "includes zero" in said(same)[0]
    assert "one seed, no interval" in said({0: row(4.5)})[0]
    for p, written in ((0.0123, "p 0.012 corrected"), (0.0004, "p < 0.001 corrected")):
        change["nats"]["holm"] = p
        assert written in results.sentence("x", change)


def test_budget_scales_every_stage_and_thins_the_variants():
    config = miniature.get_config()
    scale(config, 0.1)
    whole = miniature.get_config()
    assert config.base.total_steps == whole.base.total_steps / 10
    assert config.tuned.total_steps == whole.tuned.total_steps / 10
    assert config.evaluation.protocol.steps == whole.evaluation.protocol.steps / 10
    assert {n for n, row in config.variants.items() if row.seeds} == {"control", "ftp_sa"}


def test_every_variant_is_a_valid_change():
    study = read_study(miniature.get_config())
    for name, row in study.variants.items():
        changed = variant_config(study, name, 1, "base", "teacher", 0)
        assert changed.seed == 1
        assert changed.init == "base"
        without = name in ("control", "adversarial")
        assert changed.lm.path == ("" if without else "teacher")
        assert study.teacher_of(name) == ("" if without else row.teacher)
    assert study.variants["control"].seeds == study.variants["ftp_sa"].seeds == 5
    before, after = (study.variants[name].config(study.tuned) for name in PAIR)
    differing = differences(before.to_dict(), after.to_dict())
    assert set(differing) == {"bridge.logits"}  # one setting apart


def test_the_study_of_a_residual_codec_differs_in_the_codec_and_how_long_it_counts():
    study, one = (read_study(m.get_config()) for m in (miniature_residual, miniature))
    for run in (study.base, study.tuned):
        assert run.codec.name == "auv"
        assert run.codec.levels > 1
        assert run.lm.reads == "flat"
    assert study.base.codec == study.tuned.codec
    assert {name: row.seeds for name, row in study.variants.items()} == {"control": 5, "ftp_sa": 5}
    for name, row in study.variants.items():
        assert row.change == one.variants[name].change
    changed = set(differences(one.tuned.to_dict(), study.tuned.to_dict()))
    others = {n for n in changed if not n.startswith("codec.")}
    assert others == {"lm.reads", "bridge.frequency_window"}


def test_a_study_that_cannot_be_is_named():
    for change, message in (
        ({"teachers": {"taught": {"step": 5}}}, "config.teachers.taught.step is unknown"),
        ({"variants": {"sa": {"teacher": "tought"}}}, "tought is unknown; the nearest is taught"),
        ({"variants": {"sa": {"change": {"lm": {"pth": ""}}}}}, "config.variants.sa.change"),
        ({"evaluation": {"protocol": {"reads": "all"}}}, "reads is one of first"),
        ({"seeds": {"sa": 1}}, "config.seeds is unknown"),
    ):
        config = miniature.get_config()
        with config.unlocked():
            config.update(ConfigDict(change))
        with pytest.raises(ValueError, match=message):
            read_study(config)


def test_holm_reads_rows_together():
    found = results.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.9})
    assert found == pytest.approx({"a": 0.04, "c": 0.09, "b": 0.09, "d": 0.9})
    changes = {
        name: {"nats": {"p": p, "mean": -1.0}} for name, p in (("a", 0.01), ("b", 0.5), ("c", None))
    }
    results.adjust(changes, ("nats",))
    assert [change["nats"].get("holm") for change in changes.values()] == [0.02, 0.5, None]
