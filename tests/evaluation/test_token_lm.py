import dataclasses
import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax import evaluate
from llmcodec_jax.codec import tokens
from llmcodec_jax.evaluation import audio_lm, streams, token_lm
from llmcodec_jax.evaluation.protocol import Protocol
from llmcodec_jax.evaluation.reports import EvaluationError
from llmcodec_jax.lm import decoder
from llmcodec_jax.lm.config import LMConfig

TINY = Protocol(
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
        audio_lm.small, stream.vocabulary, stream.levels, protocol.width, protocol.layers
    )
    return token_lm.measure(stream, protocol, start)["nats_per_token"]["mean"]


@pytest.mark.parametrize("levels", [1, 2])
def test_uniform_tokens_score_ln_v(levels):
    assert _measure(_streams(_uniform, levels=levels)) == pytest.approx(math.log(64), rel=0.01)


def test_periodic_tokens_score_near_zero():
    assert _measure(_streams(_periodic)) < 0.1


def test_rows_that_met_the_tokens_before_are_a_head_start():
    stream, short = _streams(_periodic), dataclasses.replace(TINY, steps=20)
    start = partial(audio_lm.small, stream.vocabulary, 1, TINY.width, TINY.layers)
    _, donor = token_lm.train(stream, TINY, start, 0)
    warm = token_lm.measure_with_rows_of(donor, stream, short)["nats_per_token"]["mean"]
    assert warm < _measure(stream, short) - 0.1


def test_likelihood_is_causal_normalised_and_ignores_padding():
    model = audio_lm.small(12, 2, 32, 1, jax.random.key(0))
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


def test_every_codec_starts_from_the_same_body_and_sees_the_same_places():
    bodies = [audio_lm.small(v, 1, 32, 1, jax.random.key(3)).body for v in (10, 999)]
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
        training, _, test = stream.split()
        statistics = streams.statistics_of(stream, training, test)
        return streams.flags(stream, statistics, reconstruction)

    collapsed = _streams(lambda g, n: g.integers(0, 3, n))
    assert any("collapsed" in flag for flag in flags_of(collapsed, sound))
    assert flags_of(_streams(_uniform), sound) == []
    assert "no reconstruction" in flags_of(_streams(_uniform), None)[0]


def test_unigram_statistics():
    stream = _streams(lambda g, n: g.choice(4, n, p=[0.4, 0.3, 0.2, 0.1]), size=8)
    training, _, test = stream.split()
    statistics = streams.statistics_of(stream, training, test)
    entropy = -sum(p * math.log(p) for p in (0.4, 0.3, 0.2, 0.1))
    assert statistics["entropy"] == pytest.approx(entropy, abs=0.02)
    assert statistics["nats"] == pytest.approx(entropy, abs=0.1)
    assert statistics["codes_used"] == pytest.approx(0.5)


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
    for word in ("WARNING no reconstruction", "unigram entropy", "code use", "over 2 seeds"):
        assert word in printed
    saved = audio_lm.load(tmp_path / "lm")
    assert saved.levels == 2
    assert saved.head.shape == (64, 32)
    assert evaluate.main([*command, "--codebook-size", "9"]) == 2


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
    start = partial(audio_lm.pretrained, tmp_path, 64, 1)
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
