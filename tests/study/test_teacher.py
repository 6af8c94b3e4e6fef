"""The study's frozen LM: what it was taught is what variants train against."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import miniature
from llmcodec_jax.evaluation.streams import Streams
from llmcodec_jax.lm import heads
from llmcodec_jax.lm.load import load_lm
from llmcodec_jax.lm.vocab import audio_head_init
from llmcodec_jax.study import teacher


@pytest.fixture(scope="module")
def taught(tiny_lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    clips = {f"{i}": np.arange(i, i + 30, dtype=np.int32) % 16 for i in range(6)}
    tokens = Streams(clips, 16, 1, 50.0, frozenset({"0", "1"}))
    config = teacher.TeacherConfig(layers=3, steps=3, batch=2, seconds=0.4, horizons=3)
    report = teacher.train_teacher(tiny_lm, folder, tokens, {"2": "one two"}, config)
    assert np.isfinite(report["nats"])
    return folder


def test_every_head_that_was_taught_is_exported(taught):
    kind = f"from:{taught}"
    embedding = jnp.zeros((16, 32))
    rows = audio_head_init({}, embedding, jax.random.key(0), kind)
    started = heads.start_heads(rows, 3, kind)
    np.testing.assert_allclose(started[0], rows, atol=1e-6)  # the merged model's own head
    for first, second in ((0, 1), (1, 2)):
        assert np.abs(started[first] - started[second]).max() > 1e-4
    np.testing.assert_array_equal(heads.start_heads(rows, 2, kind), started[:2])
    more = heads.start_heads(rows, 5, kind)
    np.testing.assert_array_equal(more[3], started[2])
    with pytest.raises(ValueError, match=r"ftp_heads\.safetensors: heads are \(16, 32\)"):
        heads.start_heads(rows[:8], 3, kind)


def test_without_a_teacher_heads_are_copies():
    rows = jnp.arange(6.0).reshape(2, 3)
    for head in heads.start_heads(rows, 2, "text_distribution"):
        np.testing.assert_array_equal(head, rows)


def test_the_next_code_weighs_alike_at_every_horizon():
    config = miniature.get_config()
    shares = {
        count: config.variants[f"heads_{count}"].change.weights.ftp
        * heads.horizon_weights(count)[0]
        for count in (1, 3, 10)
    }
    shares[5] = config.tuned.weights.ftp * heads.horizon_weights(config.tuned.lm.horizons)[0]
    assert config.tuned.lm.horizons == 5
    np.testing.assert_allclose(list(shares.values()), shares[5], rtol=1e-6)
    assert config.teachers.taught.horizons >= max(shares)


def test_a_text_teachers_body_stays_what_it_was(tiny_lm, tmp_path):
    """Audio rows and heads alone learn; layers and text rows stay, bit for bit."""
    clips = {f"{i}": np.arange(i, i + 30, dtype=np.int32) % 16 for i in range(6)}
    tokens = Streams(clips, 16, 1, 50.0, frozenset({"0", "1"}))
    config = teacher.TeacherConfig(
        layers=0, steps=3, batch=2, seconds=0.4, horizons=2, body_learning_rate=0.0
    )
    teacher.train_teacher(tiny_lm, tmp_path, tokens, {}, config)
    (before_config, before, _), (after_config, after, _) = (
        load_lm(folder, jnp.float32) for folder in (tiny_lm, tmp_path)
    )
    assert before_config.layers == after_config.layers
    for name in before:
        if name != "embed" and name in after:
            jax.tree.map(np.testing.assert_array_equal, before[name], after[name])
    tables = [params["embed"]["embedding"] for params in (before, after)]
    rows = len(tables[1]) - 16  # rows past the tokenizer's are cut, audio rows follow
    np.testing.assert_array_equal(tables[0][:rows], tables[1][:rows])
    assert np.abs(np.diff(heads.start_heads(jnp.zeros((16, 32)), 2, f"from:{tmp_path}"), 0)).max()


def test_whole_frames_of_every_level_are_taught_and_unseen_voices_left_alone(
    tiny_lm, tmp_path, monkeypatch
):
    frames = np.arange(30, dtype=np.int32)
    clips = {f"{i}": np.stack([(i + frames) % 16, 16 + frames % 16], 1).ravel() for i in range(6)}
    tokens = Streams(clips, 16, 2, 50.0, frozenset({"0", "1"}), frozenset({"5"}))
    asked, rows = [], teacher._rows

    def spy(tokens, *args):
        batch = rows(tokens, *args)
        asked.append((set(args[4]), batch))
        return batch

    monkeypatch.setattr(teacher, "_rows", spy)
    config = teacher.TeacherConfig(layers=3, steps=3, batch=4, seconds=0.4, horizons=2)
    teacher.train_teacher(tiny_lm, tmp_path, tokens, {}, config)
    assert set().union(*(names for names, _ in asked)) == {"0", "1", "2", "3", "4"}
    for _, batch in asked:
        assert (batch["length"] == 1 + 2 * 20).all()
        codes = batch["ids"][:, 1 : 1 + 2 * 20].reshape(4, 20, 2)
        assert (codes[..., 0] < 16).all()
        assert (codes[..., 1] >= 16).all()
    started = heads.start_heads(jnp.zeros((32, 32)), 2, f"from:{tmp_path}")
    assert started.shape == (2, 32, 32)
