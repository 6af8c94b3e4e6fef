"""Shards that one host reads, mixtures by hours, and recordings left out for what they are."""

import json

import numpy as np
import pytest

from llmcodec_jax import audio
from llmcodec_jax.audio import AudioError
from llmcodec_jax.data import survey
from llmcodec_jax.data.batches import Batches
from llmcodec_jax.data.prepare import prepare
from llmcodec_jax.data.sources import estimate_hours, open_mixture, open_source
from llmcodec_jax.data.survey import Limits, levels
from llmcodec_jax.errors import UsageError
from tests.tiny import TONE_RATE, open_parts, tone, write_corpus

CLIP = dict(sample_rate=TONE_RATE, clip_samples=8000, hop=320)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    corpus = write_corpus(folder / "in")
    prepare(f"librispeech:{corpus}", folder / "out", shards=4, sample_rate=TONE_RATE)
    return f"arrayrecord:{folder / 'out'}"


def drawn(source, count, **options):
    """(example ids [count, local rows], which records were opened)."""
    options = CLIP | options
    parts, maker = open_parts(source, "all", options)
    opened, read = set(), parts[0].source.record
    parts[0].source.record = lambda index: opened.add(index) or read(index)
    batches = Batches(parts, maker, batch_size=8, seed=5, by_shard=True, **options)
    return np.stack([batches[i]["fields"]["example_id"] for i in range(count)]), opened


def test_each_shard_is_read_by_one_host_and_batches_do_not_change(shards):
    source = open_source(shards)
    starts = np.cumsum([0, *source.shards])
    assert len(source.shards) == 4
    whole, _ = drawn(shards, 6)
    for hosts in (2, 4):
        found = [drawn(shards, 6, process_index=i, process_count=hosts) for i in range(hosts)]
        np.testing.assert_array_equal(whole, np.concatenate([ids for ids, _ in found], axis=1))
        files = [{int(np.searchsorted(starts, i, "right")) for i in opened} for _, opened in found]
        assert sum(map(len, files)) == 4
        assert set().union(*files) == {1, 2, 3, 4}
    with pytest.raises(UsageError, match="8 processes cannot share 4 shards"):
        drawn(shards, 1, process_count=8)


def test_each_group_meets_each_of_its_records_once_an_epoch(shards):
    ids, _ = drawn(shards, 9)
    source = open_source(shards)
    for group in range(4):  # two rows of a batch each
        rows, size = ids[:, 2 * group : 2 * group + 2].reshape(-1), source.shards[group]
        for epoch in range(len(rows) // size):
            assert len(set(rows[epoch * size : (epoch + 1) * size])) == size


def test_hours_and_temperature_decide_a_mixture(tmp_path):
    for name, clips in (("long", 9), ("short", 1)):
        for index in range(clips):
            audio.write(tmp_path / name / f"{index}.wav", tone(1.0), TONE_RATE)
    specs = [f"folder:{tmp_path / name}" for name in ("long", "short")]
    assert estimate_hours(open_source(specs[0])) == pytest.approx(9 / 3600)
    for temperature, share in ((1.0, 0.9), (2.0, 0.75), (1e6, 0.5)):
        first, second = open_mixture(specs, temperature=temperature)
        assert first.weight / (first.weight + second.weight) == pytest.approx(share, abs=1e-4)
    assert [part.weight for part in open_mixture(specs)] == [1, 1]
    with pytest.raises(UsageError, match="temperature must be positive"):
        open_mixture(specs, temperature=0.0)


def test_levels_of_known_sounds():
    rng = np.random.default_rng(0)
    rate = 8000
    loud = 0.5 * np.sin(2 * np.pi * 440 * np.arange(4 * rate) / rate)
    assert levels(loud, rate)[0] == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.1)
    half = loud * (np.arange(len(loud)) < 2 * rate)
    assert levels(half, rate)[2] == pytest.approx(0.5, abs=0.02)
    for decibels in (10, 20, 30):
        noise = rng.normal(size=len(half)) * 0.5 / np.sqrt(2) * 10 ** (-decibels / 20)
        assert levels(half + noise, rate)[1] == pytest.approx(decibels, abs=3.5)
    assert levels(np.zeros(100), rate)[0] == pytest.approx(-120)


@pytest.fixture
def mixed(tmp_path):
    """A good clip, its copy, a quiet, a noisy, a mostly silent, a short one, and no audio."""
    rng = np.random.default_rng(0)
    good = tone(2.0) * (np.sin(np.arange(16_000) / 900) > 0)
    sounds = {
        "a-good": good + 0.0005 * rng.normal(size=16_000),
        "c-quiet": 0.003 * good + 1e-5 * rng.normal(size=16_000),
        "d-noisy": good + 0.3 * rng.normal(size=16_000),
        "e-silent": np.pad(tone(0.2), (0, 14_400)),
        "f-short": tone(0.1),
    }
    sounds["b-copy"] = sounds["a-good"]
    for name, wav in sounds.items():
        audio.write(tmp_path / "in" / f"{name}.wav", np.clip(wav, -1, 1), TONE_RATE)
    (tmp_path / "in/g-bad.wav").write_bytes(b"RIFF")
    return tmp_path


def test_prepare_leaves_out_and_counts(mixed, monkeypatch):
    limits = Limits(0.3, None, -45.0, 8.0, 0.8, deduplicate=True)
    spec, out = f"folder:{mixed / 'in'}", mixed / "out"
    options = dict(shards=1, sample_rate=TONE_RATE, limits=limits)
    counts = prepare(spec, out, **options)
    assert counts == {
        "written": 1,
        "skipped": 0,
        "kept_shards": 0,
        "left out, duplicate": 1,
        "left out, min_loudness": 1,
        "left out, min_snr": 1,
        "left out, max_silence": 1,
        "left out, min_seconds": 1,
        "left out, unreadable": 1,
    }
    source = open_source(f"arrayrecord:{out}")
    assert [source.name(i) for i in range(len(source))] == ["a-good"]

    # The pass is taken up where a kill left it, and listens to the rest alone.
    rows = (out / survey.SURVEY).read_text().splitlines(keepends=True)
    assert len(rows) == 7
    (out / survey.SURVEY).write_text("".join(rows[:3]) + rows[3][:20])
    heard = []
    listen = survey.listen
    monkeypatch.setattr(
        "llmcodec_jax.data.prepare.listen", lambda s, i: heard.append(i) or listen(s, i)
    )
    assert prepare(spec, out, **options) == counts | {"written": 0, "kept_shards": 1}
    assert heard == [3, 4, 5, 6]
    assert (out / survey.SURVEY).read_text() == "".join(rows)
    with pytest.raises(ValueError, match="was begun with another limits"):
        prepare(spec, out, **options | {"limits": Limits(min_seconds=1.0)})
    with pytest.raises(AudioError, match="the limits leave nothing"):
        prepare(spec, mixed / "none", **options | {"limits": Limits(min_seconds=99.0)})
    assert json.loads(rows[0])["name"] == "a-good"
