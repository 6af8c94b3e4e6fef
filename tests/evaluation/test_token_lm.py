import dataclasses
import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax import audio, evaluate
from llmcodec_jax.codec import tokens
from llmcodec_jax.evaluation import audio_lm, streams, token_lm
from llmcodec_jax.evaluation.protocol import TokenLMProtocol
from llmcodec_jax.evaluation.reports import EvaluationError
from llmcodec_jax.lm import decoder
from llmcodec_jax.lm.config import LMConfig
from llmcodec_jax.lm.reading import Reading, reading

TINY = TokenLMProtocol(
    steps=80,
    batch=8,
    seconds=1.0,
    width=32,
    layers=1,
    learning_rate=1e-2,
    evaluations=4,
    seeds=(0,),
)


def _streams(make, size=64, levels=1, clips=40):
    generator = np.random.default_rng(0)
    made = {}
    for index in range(clips):
        length = int(generator.integers(60, 90)) * levels
        codes = make(generator, length) % size + (np.arange(length) % levels) * size
        made[f"{index}"] = codes.astype(np.int32)
    return streams.Streams(made, size, levels, 50.0)


def _uniform(generator, length):
    return generator.integers(0, 1 << 20, length)


def _periodic(generator, length):
    return np.arange(length) % 16 * 4


def _measure(stream, protocol=TINY):
    start = partial(
        audio_lm.small,
        stream.vocabulary,
        reading("flat", stream.levels),
        protocol.width,
        protocol.layers,
    )
    return token_lm.measure(stream, protocol, start)["nats_per_token"]["mean"]


@pytest.mark.parametrize("levels", [1, 2])
def test_uniform_tokens_score_ln_v(levels):
    assert _measure(_streams(_uniform, levels=levels)) == pytest.approx(math.log(64), rel=0.01)


def test_periodic_tokens_score_near_zero():
    assert _measure(_streams(_periodic)) < 0.1


def test_rows_that_met_the_tokens_before_are_a_head_start():
    stream, short = _streams(_periodic), dataclasses.replace(TINY, steps=20)
    start = partial(audio_lm.small, stream.vocabulary, Reading(), TINY.width, TINY.layers)
    _, donor = token_lm.train(stream, TINY, start, 0)
    warm = token_lm.measure_with_rows_of(donor, stream, short)["nats_per_token"]["mean"]
    assert warm < _measure(stream, short) - 0.1


def test_likelihood_is_causal_normalised_and_ignores_padding():
    model = audio_lm.small(12, reading("flat", 2), 32, 1, jax.random.key(0))
    head = 0.1 * jax.random.normal(jax.random.key(1), model.head.shape)
    model = model.replace(head=head)
    codes = np.array([[1, 7, 3, 11, 0, 6]])
    base = audio_lm.token_log_probs(model, codes, np.array([6]))
    padded = np.pad(codes, ((0, 0), (0, 4)), constant_values=5)
    longer = audio_lm.token_log_probs(model, padded, np.array([6]))
    np.testing.assert_allclose(base, longer[:, :6], atol=1e-5)
    changed = codes.copy()
    changed[0, 4] = 2
    later = audio_lm.token_log_probs(model, changed, np.array([6]))
    np.testing.assert_allclose(base[:, :4], later[:, :4], atol=1e-6)
    assert abs(float(base[0, 5] - later[0, 5])) > 1e-6
    level_one = [[*codes[0, :1], 6 + i, *codes[0, 2:]] for i in range(6)]
    values = audio_lm.token_log_probs(model, np.array(level_one), np.full(6, 6))[:, 1]
    assert float(jnp.exp(values).sum()) == pytest.approx(1, abs=1e-5)


def test_summed_levels_see_earlier_frames_and_not_each_other(tmp_path):
    model = audio_lm.small(12, reading("sum", 2), 32, 1, jax.random.key(0))
    model = model.replace(head=0.1 * jax.random.normal(jax.random.key(1), model.head.shape))
    codes, length = np.array([[1, 7, 3, 11, 0, 6, 2, 8]]), np.array([8])
    base = audio_lm.token_log_probs(model, codes, length)
    for place, later in ((2, 4), (3, 4)):  # either code of frame 1: frames 2 and 3 alone see it
        changed = codes.copy()
        changed[0, place] = codes[0, place] - 1
        found = audio_lm.token_log_probs(model, changed, length)
        same = np.isclose(base, found, atol=1e-6)[0]
        same[place] = False  # it is another code's own probability
        assert same[:later].sum() == later - 1
        assert not same[later:].any()
    for level in range(2):
        rows = np.repeat(codes, 6, axis=0)
        rows[:, 4 + level] = 6 * level + np.arange(6)
        values = audio_lm.token_log_probs(model, rows, np.full(6, 8))[:, 4 + level]
        assert float(jnp.exp(values).sum()) == pytest.approx(1, abs=1e-5)
    audio_lm.save(tmp_path, model)
    assert audio_lm.load(tmp_path).reading == model.reading


def test_every_codec_starts_from_the_same_body_and_sees_the_same_places():
    bodies = [audio_lm.small(v, Reading(), 32, 1, jax.random.key(3)).body for v in (10, 999)]
    jax.tree.map(np.testing.assert_array_equal, *bodies)
    seen = []
    for levels in (1, 2):
        clips = {str(i): np.repeat(1000 * i + np.arange(100), levels) for i in range(9)}
        stream = streams.Streams(clips, 10_000, levels, 50.0)
        batch = next(token_lm.training_stretches(stream, sorted(clips), 20 * levels, TINY, 7))
        seen.append(batch.codes[:, 0])
    np.testing.assert_array_equal(*seen)


def test_the_split_depends_on_names_alone():
    first = _streams(_uniform).split()
    second = _streams(_periodic, size=999, levels=2).split()
    assert first == second
    assert sorted(name for names in first for name in names) == sorted(map(str, range(40)))
    with pytest.raises(EvaluationError, match="three clips"):
        _streams(_uniform, clips=2).split()


def test_collapse_is_flagged_and_a_good_codec_is_not():
    sound = {"mel": 0.7}

    def flags_of(stream, reconstruction):
        statistics = _statistics(stream)
        return streams.flags(stream, statistics, reconstruction)

    collapsed = _streams(lambda g, n: g.integers(0, 3, n))
    assert any("collapsed" in flag for flag in flags_of(collapsed, sound))
    assert flags_of(_streams(_uniform), sound) == []
    assert "no reconstruction" in flags_of(_streams(_uniform), None)[0]


def _statistics(stream, protocol=TINY):
    stretches = token_lm.held_out(stream, protocol)[1]
    return streams.statistics_of(stream, stream.split()[0], stretches.rows())[0]


def test_unigram_statistics():
    stream = _streams(lambda g, n: g.choice(4, n, p=[0.4, 0.3, 0.2, 0.1]), size=8)
    statistics = _statistics(stream)
    entropy = -sum(p * math.log(p) for p in (0.4, 0.3, 0.2, 0.1))
    assert statistics["entropy"] == pytest.approx(entropy, abs=0.02)
    assert statistics["nats"] == pytest.approx(entropy, abs=0.1)
    assert statistics["codes_used"] == pytest.approx(0.5)


def test_stretches_are_chosen_by_hash_and_the_unigram_sees_no_others():
    """Music sorts before speech: the first stretches of the alphabet are all of one kind."""
    music = {f"music/{i:02d}": np.full(100, 3, np.int32) for i in range(40)}
    speech = {f"speech/{i:02d}": np.full(100, 5, np.int32) for i in range(40)}
    stream = streams.Streams(music | speech, 8, 1, 50.0)
    protocol = dataclasses.replace(TINY, held_out_stretches=8)
    _, test = token_lm.held_out(stream, protocol)
    assert len(test.codes) == 8
    assert set(np.unique(test.codes)) == {3, 5}
    share = float(np.mean(test.codes[:, 0] == 3))
    learned = np.bincount(np.concatenate([stream.clips[n] for n in stream.split()[0]]), minlength=8)
    learned = 0.999 * learned / learned.sum() + 0.001 / 8
    expected = -(share * math.log(learned[3]) + (1 - share) * math.log(learned[5]))
    assert _statistics(stream, protocol)["nats"] == pytest.approx(expected, abs=1e-3)
    halved = streams.Streams({n: c[::2] for n, c in stream.clips.items()}, 8, 1, 25.0)
    again = token_lm.held_out(halved, protocol)[1]
    np.testing.assert_array_equal(again.codes[:, 0], test.codes[:, 0])  # the same places


def test_repetition_is_counted_level_by_level():
    """Saying every code twice halves the nats at an unchanged unigram entropy."""
    once = _streams(_uniform)
    twice = dataclasses.replace(once, clips={n: np.repeat(c, 2) for n, c in once.clips.items()})
    first, second = _statistics(once), _statistics(twice)
    assert second["entropy"] == pytest.approx(first["entropy"], abs=1e-6)
    assert first["repeats"] == pytest.approx(1 / 64, abs=0.01)
    assert second["repeats"] == pytest.approx(0.5, abs=0.02)
    frames = np.array([[1, 10], [1, 11], [2, 11]])
    levels = streams.Streams({str(i): frames.reshape(-1) for i in range(9)}, 10, 2, 50.0)
    assert _statistics(levels)["repeats"] == 0.5


def test_what_repeats_is_scored_apart():
    """By hand from every token's log-probability, frames of two levels, the last one cut."""
    frames = np.array([[1, 2], [1, 3], [4, 3], [4, 3], [0, 1], [0, 1]])
    stretches = token_lm.Stretches(
        np.stack([(frames + np.array([0, 5])).reshape(-1)] * 3).astype(np.int32),
        np.array([12, 8, 2]),
    )
    key = jax.random.key(0)
    model = audio_lm.small(10, reading("flat", 2), 32, 1, key)
    model = model.replace(head=jax.random.normal(key, model.head.shape))
    every = audio_lm.token_log_probs(model, jnp.asarray(stretches.codes), jnp.array([12, 8, 2]))
    valid = np.arange(12) < stretches.lengths[:, None]
    new = valid & (np.arange(12) % 12 != 2) & ~np.isin(np.arange(12), [5, 6, 7, 10, 11])
    found = token_lm.score(model, stretches, batch=2)
    assert found["nats"] == pytest.approx(-np.asarray(every)[valid].mean(), rel=1e-5)
    assert found["new_nats"] == pytest.approx(-np.asarray(every)[new].mean(), rel=1e-5)


def test_saying_everything_twice_lowers_nats_but_not_those_of_what_is_new():
    once = _streams(_uniform)
    twice = dataclasses.replace(once, clips={n: np.repeat(c, 2) for n, c in once.clips.items()})
    start = partial(audio_lm.small, 64, reading("flat", 1), TINY.width, TINY.layers)
    protocol = dataclasses.replace(TINY, steps=300)
    found = token_lm.measure(twice, protocol, start)
    assert found["nats_per_token"]["mean"] < 0.85 * math.log(64)
    assert found["new_nats_per_token"]["mean"] > 0.95 * math.log(64)


class Echo:
    """Frames hold a number each; codes are the number `ahead` frames later, 0 past the end."""

    sample_rate, hop, codebook_size, levels, frame_rate = 400, 8, 16, 1, 50.0

    def __init__(self, ahead):
        self.ahead = ahead

    def encode(self, wav, rate):
        if isinstance(wav, list):
            return [self.encode(clip, rate) for clip in wav]
        numbers = np.round(wav[:: self.hop] * 16).astype(np.int32)
        return np.pad(numbers[self.ahead :], (0, self.ahead))


@pytest.mark.parametrize(("ahead", "least", "most"), [(0, 1.0, 1.0), (1, -2.0, 0.6)])
def test_prediction_that_needs_the_future_is_told_from_prediction(tmp_path, ahead, least, most):
    """Runs of four equal numbers, which follow from the one before, or from look-ahead.

    With a frame of look-ahead the code before a number already is that number; coded without the
    audio that follows, it is not.
    """
    generator = np.random.default_rng(0)
    for index in range(40):
        numbers = np.repeat(generator.integers(1, 16, 45), 4)
        audio.write(tmp_path / f"{index:02d}.wav", np.repeat(numbers / 16, 8), 400, exact=True)
    codec, protocol = Echo(ahead), dataclasses.replace(TINY, steps=200, probes=48)
    stream, failed = streams.from_codec(codec, tmp_path)
    assert not failed
    start = streams.start_encoder(codec, tmp_path)
    found = token_lm.report(stream, protocol, encode_start=start)["small_lm"]["look_ahead"]
    assert found["probes"] == 48
    assert found["unigram"] - found["nats"] > 0.5
    assert least <= found["share"] <= most
    assert found["interval"][0] <= found["share"] <= found["interval"][1]


def test_unreadable_clips_do_not_end_the_measurement(tmp_path):
    for index in range(4):
        audio.write(tmp_path / f"{index}.wav", np.full(4000, 0.5), 400)
    (tmp_path / "2.wav").write_bytes(b"RIFF")
    stream, failed = streams.from_codec(Echo(0), tmp_path)
    assert sorted(stream.clips) == ["0", "1", "3"]
    assert list(failed) == ["2"]


def test_command_on_foreign_token_files(tmp_path, capsys):
    generator = np.random.default_rng(0)
    for index in range(12):
        codes = generator.integers(0, 32, (60, 2))
        entry = tokens.Tokens(codes, 24000, 60 * 320)
        tokens.write(tmp_path / "tokens" / f"{index}.npz", entry)
    output = tmp_path / "report.json"
    command = ["token_lm", "--codec", str(tmp_path / "tokens"), "--output", str(output)]
    options = "--codebook-size 32 --steps 2 --width 32 --layers 1 --batch 4 --seeds 2 --seconds 1"
    assert evaluate.main([*command, *options.split(), "--save-lm", str(tmp_path / "lm")]) == 0
    report = json.loads(output.read_text())
    assert report["stream"]["tokens_per_second"] == pytest.approx(150)
    assert report["stream"]["bits_per_second"] == pytest.approx(750)
    assert len(report["small_lm"]["nats_per_token"]["values"]) == 2
    assert report["small_lm"]["nats_per_token"]["mean"] == pytest.approx(math.log(32), rel=0.05)
    printed = capsys.readouterr().out
    for word in (
        "that repeat nothing",
        "WARNING no reconstruction",
        "unigram entropy",
        "repeats",
        "over 2 seeds",
    ):
        assert word in printed
    saved = audio_lm.load(tmp_path / "lm")
    assert saved.levels == 2
    assert saved.head.shape == (64, 32)
    for reads, levels, positions in (("first", 1, 75), ("sum", 2, 75)):
        chosen = [*command, *options.split(), "--reads", reads, "--save-lm", str(tmp_path / reads)]
        assert evaluate.main(chosen) == 0
        report = json.loads(output.read_text())
        assert report["stream"]["levels"] == levels
        assert report["stream"]["positions_per_second"] == pytest.approx(positions)
        assert report["stream"]["bits_per_second"] == pytest.approx(375 * levels)
        nats = report["small_lm"]["nats_per_token"]["mean"]
        assert nats == pytest.approx(math.log(32), rel=0.05)
        rate = report["small_lm"]["bits_per_second"]["mean"]
        assert rate == pytest.approx(75 * levels * nats / math.log(2))
        assert audio_lm.load(tmp_path / reads).reading == reading(reads, 2)
    assert evaluate.main([*command, "--codebook-size", "9"]) == 2
    assert evaluate.main([*command, "--reads", "all"]) == 2
    assert report["small_lm"]["look_ahead"] is None  # there is no codec to ask


@pytest.mark.slow
def test_lora_trains_adapters_and_rows_only(tmp_path):
    from llmcodec_jax.lm import huggingface

    config = LMConfig(
        vocab_size=50,
        width=32,
        layers=2,
        heads=2,
        kv_heads=1,
        head_dim=16,
        ffn_width=48,
        qk_norm=True,
        tied=True,
    )
    huggingface.export(tmp_path, config, decoder.init_params(config, jax.random.key(0)))
    stream = _streams(_periodic)
    start = partial(audio_lm.pretrained, tmp_path, 64, Reading())
    model = start(jax.random.key(0))
    assert set(model.trainable()) == {"embedding", "head", "lora"}
    assert model.lora.alpha == 128
    assert model.lora.dropout == 0.05
    layers = {path[-2].key for path, _ in jax.tree_util.tree_leaves_with_path(model.lora.weights)}
    assert {"q_proj", "o_proj", "gate_proj", "down_proj"} <= layers
    protocol = dataclasses.replace(TINY, steps=30, lora_learning_rate=5e-3)
    run, trained = token_lm.train(stream, protocol, start, 0)
    assert run["nats"] < 2
    jax.tree.map(np.testing.assert_array_equal, trained.body, model.body)
