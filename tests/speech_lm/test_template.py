"""Sequences of the tasks, and rows packed from them."""

import numpy as np
import pytest

from llmcodec_jax.errors import UserError
from llmcodec_jax.speech_lm import batches, data, template
from llmcodec_jax.speech_lm.config import default_config, may_change, read_config
from llmcodec_jax.speech_lm.corpus import Clip
from llmcodec_jax.speech_lm.method import targets
from llmcodec_jax.speech_lm.template import Turn, Vocabulary

WORDS = Vocabulary(size=10, levels=1, text=256)
CODES = np.arange(5, dtype=np.int32)


def spelled(document, vocabulary=WORDS) -> str:
    """A sequence as its marks, codes and letters; what is learned in capitals."""

    def one(i):
        if i < vocabulary.codes:
            return f"c{i}"
        if i < vocabulary.rows:
            return template.MARKS[i - vocabulary.codes]
        return chr(i - vocabulary.rows)

    found = [one(i).upper() if p else one(i) for i, p in zip(*document, strict=True)]
    return " ".join(found)


def test_sequences_are_those_of_the_table():
    assert spelled(template.continuation(WORDS, CODES[:2], ends=True)) == "<audio> C0 C1 <END>"
    assert spelled(template.continuation(WORDS, CODES[:2], ends=False)) == "<audio> C0 C1"
    said = template.tts(WORDS, data.bytes_of("hi"), CODES[:1], voice=CODES[3:])
    assert spelled(said) == "<text> h i <voice> c3 c4 <audio> C0 <END>"
    assert spelled(template.tts(WORDS, data.bytes_of("a"), CODES[:1])) == (
        "<text> a <audio> C0 <END>"
    )
    turns = [Turn("user", codes=CODES[:1]), Turn("assistant", data.bytes_of("o"), CODES[1:2])]
    assert spelled(template.chat(WORDS, turns)) == (
        "<user> <audio> c0 <end> <assistant> <TEXT> O <AUDIO> C1 <END>"
    )


def test_levels_take_turns_and_only_whole_frames_end():
    allowed = Vocabulary(size=3, levels=2, text=0).allowed()
    assert allowed.shape == (2, 6 + len(template.MARKS))
    assert np.flatnonzero(allowed[0]).tolist() == [0, 1, 2, 6 + template.MARKS.index("<end>")]
    assert np.flatnonzero(allowed[1]).tolist() == [3, 4, 5]


def clips(lengths):
    return [Clip(f"c{i}", "s", "t", np.full(n, i % 10, np.int32)) for i, n in enumerate(lengths)]


def make(clip, generator):
    return template.continuation(WORDS, clip.codes, ends=True)


def open_batches(given, length=20, rows=2, seed=3, **options):
    return batches.PackedBatches(given, make, rows=rows, length=length, seed=seed, **options)


def test_every_sequence_is_packed_once_an_epoch_and_rows_hold_whole_ones():
    given = clips([3, 9, 14, 5, 8, 2, 17, 11])
    loader, seen = open_batches(given), []
    while len(seen) < len(given):
        batch = next(loader)
        for row in range(2):
            for segment in range(1, batch.segments[row].max() + 1):
                inside = batch.segments[row] == segment
                codes = batch.ids[row][inside][1:-1]
                seen.append(int(codes[0]))
                assert len(codes) == len(given[codes[0]].codes)
                np.testing.assert_array_equal(batch.positions[row][inside], np.arange(inside.sum()))
    assert sorted(seen[: len(given)]) == list(range(len(given)))


def test_a_restored_loader_gives_the_same_batches():
    first = open_batches(clips(range(2, 17)))
    for _ in range(3):
        next(first)
    again = open_batches(clips(range(2, 17)))
    again.restore(first.state())
    for _ in range(8):
        np.testing.assert_array_equal(next(first).ids, next(again).ids)


def test_processes_share_a_batch():
    whole = next(open_batches(clips(range(2, 17)), rows=4)).ids
    parts = [
        next(open_batches(clips(range(2, 17)), rows=4, process_index=i, process_count=2)).ids
        for i in (0, 1)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_long_sequences_are_left_out_and_none_at_all_is_an_error(caplog):
    batch = next(open_batches(clips([3, 50, 4])))
    assert set(np.unique(batch.ids[batch.segments > 0])) <= {
        0,
        2,
        WORDS.mark("<audio>"),
        WORDS.mark("<end>"),
    }
    with pytest.raises(UserError, match=r"longer than data\.length=20"):
        next(open_batches(clips([50, 60])))


def test_heads_predict_within_a_sequence_what_is_learned():
    row = batches.pack(iter([make(c, None) for c in clips([2, 3])]), 1, 12)[0]
    labels, valid = targets(row, 2)
    # <audio> 0 0 <end> <audio> 1 1 1 <end> . . .
    assert valid[0, 0].tolist() == [True] * 3 + [False] + [True] * 4 + [False] * 4
    assert valid[1, 0].tolist() == [True] * 2 + [False] * 2 + [True] * 3 + [False] * 5
    assert labels[1, 0, 0] == 0
    assert labels[1, 0, 1] == WORDS.mark("<end>")


def test_a_voice_prompt_is_another_clip_of_the_voice():
    config = default_config()
    config.task, config.data.voice_share, config.data.voice_seconds = "tts", 1.0, 0.06
    own = [Clip(f"c{i}", "a" if i < 2 else "b", "x", np.full(8, i, np.int32)) for i in range(3)]
    sequences = data.Sequences(read_config(config), WORDS, 50.0, data.bytes_of, own)
    generator = np.random.default_rng(0)
    assert sequences.voice(own[0], generator).tolist() == [1, 1, 1]
    assert sequences.voice(own[2], generator) is None


def test_held_out_voices_are_never_trained_on():
    config = default_config()
    config.data.split_by, config.data.eval_fraction, config.data.eval_max = "speaker", 0.3, 3
    given = [Clip(f"c{i}", f"v{i % 20}", "x", CODES) for i in range(200)]
    training, held = data.split(given, read_config(config).data)
    assert len(held) == 3
    assert not {c.speaker for c in training} & {c.speaker for c in held}


def test_held_out_sentences_are_never_trained_on():
    config = default_config()
    config.data.split_by, config.data.eval_fraction = "text", 0.3
    given = [Clip(f"c{i}", f"v{i % 4}", f"sentence {i // 4}", CODES) for i in range(80)]
    training, held = data.split(given, read_config(config).data)
    assert len(held) > 8
    assert not {c.text for c in training} & {c.text for c in held}


def test_what_may_change_when_a_run_resumes():
    assert may_change("total_steps")
    assert may_change("optim.groups.body.learning_rate")
    assert not may_change("task")
    assert not may_change("lm.width")
    assert not may_change("data.length")
