"""SALMon scoring, the suite generator, and token consistency."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from llmcodec_jax import audio, evaluate
from llmcodec_jax.data.sources import open_source
from llmcodec_jax.evaluation import consistency, salmon, suite
from llmcodec_jax.evaluation.reports import EvaluationError

RATE = 16000


class LevelCodec:
    """Codes are the loudness of 20 ms frames: enough to test what is done with codes."""

    sample_rate, codebook_size, levels, frame_rate = RATE, 64, 1, 50.0

    def encode(self, wav, rate):
        if isinstance(wav, list):
            return [self.encode(w, rate) for w in wav]
        frames = np.pad(wav, (0, -len(wav) % 320)).reshape(-1, 320)
        level = 20 * np.log10(np.sqrt(np.mean(frames**2, axis=1)) + 1e-4)
        return np.clip(level + 63, 0, 63).astype(np.int32)

    def decode(self, codes):
        return np.repeat(10 ** ((codes - 63.0) / 20), 320).astype(np.float32)


def _corpus(root):
    """Four speakers with pitches of their own who all read the same three texts."""
    generator = np.random.default_rng(0)
    rows = []
    for number, pitch in enumerate((100, 130, 200, 240)):
        speaker = str(10 + number)
        folder = root / speaker / "1"
        folder.mkdir(parents=True)
        lines = []
        for text in range(3):
            time = np.arange(int((1.2 + 0.2 * text) * RATE)) / RATE
            syllables = np.abs(np.sin(2 * np.pi * (2 + text) * time)) ** 2
            wav = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 9)) * syllables
            name = f"{speaker}-1-000{text}"
            wav = 0.1 * wav + 1e-4 * generator.normal(size=len(time))
            soundfile.write(folder / f"{name}.flac", wav, RATE)
            lines.append(f"{name} TEXT NUMBER {text}\n")
        (folder / f"{speaker}-1.trans.txt").write_text("".join(lines))
        rows.append(f"{speaker} | {'M' if pitch < 150 else 'F'} | x\n")
    (root / "SPEAKERS.TXT").write_text("; ID | SEX\n" + "".join(rows))
    return root


@pytest.fixture(scope="module")
def made_suite(tmp_path_factory):
    root = _corpus(tmp_path_factory.mktemp("corpus"))
    output = tmp_path_factory.mktemp("suite")
    command = ["suite", "--data", f"librispeech:{root}", "--output", str(output), "--pairs", "24"]
    assert evaluate.main(command) == 0
    return root, output


def test_suite_has_every_part_with_a_control(made_suite):
    parts = salmon.find_parts(made_suite[1])
    names = {name for part in suite.PARTS for name in (part, f"{part}_control")}
    assert set(parts) == names
    assert {len(pairs) for pairs in parts.values()} == {24}
    assert list(parts)[:2] == ["bg_all_consistency", "bg_all_consistency_control"]
    assert "speaker_consistency" in (made_suite[1] / "README.md").read_text()


def test_suite_is_deterministic(made_suite, tmp_path):
    root, output = made_suite
    corpus = suite.open_corpus(open_source(f"librispeech:{root}"), suite.read_genders(root))
    suite.make(corpus, tmp_path, 2, 0, [])
    for path in sorted(tmp_path.rglob("*.wav")):
        assert path.read_bytes() == (output / path.relative_to(tmp_path)).read_bytes()
    suite.make(corpus, tmp_path / "other", 1, 1, [])
    name = "speaker_consistency/sample_0_0.wav"
    assert (tmp_path / "other" / name).read_bytes() != (output / name).read_bytes()


def test_clips_of_a_pair_differ_in_nothing_but_the_change(made_suite):
    for name, pairs in salmon.find_parts(made_suite[1]).items():
        for pair in pairs:
            first, second = (audio.load(path, RATE) for path in pair)
            assert len(first) == len(second), name
            assert not np.array_equal(first, second), name
            # Both begin alike: what differs comes after the splice.
            np.testing.assert_allclose(first[: RATE // 5], second[: RATE // 5], atol=2e-4)


def test_speaker_pairs_use_one_text_and_the_gender_asked_for(made_suite):
    root, _ = made_suite
    corpus = suite.open_corpus(open_source(f"librispeech:{root}"), suite.read_genders(root))
    same_gender, other_gender = (
        suite.PARTS[part][0] for part in ("speaker_consistency", "gender_consistency")
    )
    heard = []
    recording = SimpleNamespace(
        utterances=corpus.utterances,
        load=lambda u: (heard.append(u), corpus.load(u))[1],
    )
    for index in range(10):
        for maker, alike in ((same_gender, True), (other_gender, False)):
            heard.clear()
            maker(recording, np.random.default_rng(index), [])
            lead, second, stranger = heard
            assert lead.speaker == second.speaker != stranger.speaker
            assert (lead.gender == stranger.gender) is alike
            assert second.text == stranger.text != lead.text


def test_random_lms_are_at_chance_everywhere(made_suite):
    """Over twenty random LMs the accuracies centre on 50 % and scatter as coins do.

    A systematic difference between the two clips of a part (a pause, a length) would make each
    LM prefer one side in most pairs: the scatter would be far wider.
    """
    parts = salmon.find_parts(made_suite[1])
    found = {name: [] for name in parts}
    for seed in range(20):
        weights = np.random.default_rng(seed).normal(size=(64, 64))
        report = salmon.evaluate(
            parts,
            LevelCodec(),
            lambda cs, w=weights: np.array([w[c[:-1], c[1:]].sum() for c in cs]),
        )
        for name, part in report["parts"].items():
            found[name].append(part["normalised"]["accuracy"])
    coin = 0.5 / np.sqrt(24)
    for name, shares in found.items():
        assert abs(np.mean(shares) - 0.5) < 0.12, (name, shares)
        assert np.std(shares) < 2 * coin, (name, shares)
    assert len(list(salmon.table(report))) == 9


def test_scoring_rules(tmp_path):
    loud, quiet = (0.5 * np.ones(3200, np.float32), 0.01 * np.ones(6400, np.float32))
    clips = [(loud, quiet), (quiet, loud), (loud, loud), (loud, quiet)]
    for index, pair in enumerate(clips):
        for order, wav in zip("ab", pair, strict=True):
            audio.write(tmp_path / "gender_consistency" / f"sample_{index}_{order}.wav", wav, RATE)
    audio.write(tmp_path / "bg_alignment/before/sample_0_0.wav", loud, RATE)
    audio.write(tmp_path / "bg_alignment/before/sample_0_1.wav", quiet, RATE)
    parts = salmon.find_parts(tmp_path)
    assert list(parts) == ["bg_alignment", "gender_consistency"]

    def likes_loud(codes):  # quiet clips are twice as long
        return np.array([float(np.sum(c)) for c in codes])

    part = salmon.evaluate(parts, LevelCodec(), likes_loud)["parts"]["gender_consistency"]
    assert part["pairs"] == 4
    assert part["normalised"]["accuracy"] == (1 + 0 + 0.5 + 1) / 4
    sums = [np.sum(LevelCodec().encode(w, RATE)) for w in (loud, quiet)]
    better = float(sums[0] > sums[1])
    assert part["summed"]["accuracy"] == (better + (1 - better) + 0.5 + better) / 4
    low, high = part["normalised"]["interval"]
    assert 0 < low < 0.625 < high < 1


def test_broken_layouts_are_named(tmp_path):
    with pytest.raises(EvaluationError, match="no such folder"):
        salmon.find_parts(tmp_path / "nothing")
    audio.write(tmp_path / "gender_consistency" / "sample_3_0.wav", np.zeros(99), RATE)
    with pytest.raises(EvaluationError, match="sample 3 has 1 files"):
        salmon.find_parts(tmp_path)


def test_consistency_of_a_codec_that_hears_only_level(tmp_path):
    generator = np.random.default_rng(0)
    for index in range(3):
        gain = np.repeat(generator.uniform(0.01, 0.3, 40), 320)
        audio.write(tmp_path / f"{index}.wav", gain * generator.normal(size=12800), RATE)
    report = consistency.evaluate(LevelCodec(), tmp_path)
    assert set(report["mean"]) == {
        "shift_later",
        "shift_earlier",
        "noise_30db",
        "resampled",
        "reencoded",
        "truncated",
    }
    assert report["mean"]["truncated"] == 0  # frames do not see each other
    assert report["mean"]["reencoded"] < 0.6
    assert 0 < report["mean"]["shift_later"] < 1
    assert json.dumps(report)


def test_consistency_takes_as_many_of_every_folder_and_says_what_it_cannot_use(tmp_path):
    generator = np.random.default_rng(0)
    for folder, count in (("a", 9), ("b", 4), ("c", 1)):
        for index in range(count):
            wav = 0.1 * generator.normal(size=6400)
            audio.write(tmp_path / folder / f"{index}.wav", wav, RATE)
    report = consistency.evaluate(LevelCodec(), tmp_path, 6)
    taken = [name.split("/")[0] for name in report["items"]]
    assert {folder: taken.count(folder) for folder in "abc"} == {"a": 2, "b": 2, "c": 1}
    assert report["failed"] == {}
    (tmp_path / "b" / "0.wav").write_bytes(b"not audio")
    audio.write(tmp_path / "c" / "0.wav", np.zeros(99), RATE)
    report = consistency.evaluate(LevelCodec(), tmp_path)
    assert len(report["items"]) == 12
    assert set(report["failed"]) == {"b/0.wav", "c/0.wav"}
    assert "shorter than two frames" in report["failed"]["c/0.wav"]


def test_changes_keep_the_length():
    wav = np.random.default_rng(0).normal(size=4001).astype(np.float32)
    made = consistency.changes(wav, RATE, 0)
    assert {len(w) for w in made.values()} == {4001}
    np.testing.assert_array_equal(made["shift_later"][24:], wav[:-24])
    np.testing.assert_array_equal(made["shift_earlier"][:-24], wav[24:])
    noise = made["noise_30db"] - wav
    assert 10 * np.log10(np.var(wav) / np.var(noise)) == pytest.approx(30, abs=0.5)
