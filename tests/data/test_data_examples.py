"""From a record to a row: crops, the words that belong to them, tokens."""

import numpy as np
import pytest

from llmcodec_jax.audio import AudioError
from llmcodec_jax.data.examples import ExampleMaker
from llmcodec_jax.data.records import ArraySound, Record
from llmcodec_jax.data.text import encode, normalise
from llmcodec_jax.types import DOMAINS
from tests.tiny import TONE_RATE, Letters, make_loader, spell, tone, write_corpus

WORDS = tuple((i + 0.1, i + 0.9, f"w{i}") for i in range(10))


def maker(**options) -> ExampleMaker:
    fields = dict(sample_rate=TONE_RATE, clip_samples=16000, hop=320)
    fields |= dict(text_tokenizer=Letters(), max_text=64)
    return ExampleMaker(**fields | options)


def ramp_record(seconds: float, **fields) -> Record:
    """Sample n has the value n / 100000: a crop tells where it was cut."""
    ramp = np.arange(round(seconds * TONE_RATE), dtype=np.float32) / 100_000
    return Record("ramp", ArraySound(ramp, TONE_RATE, "ramp"), **fields)


def make(maker, record, seed=0):
    example = maker.make(record, np.random.default_rng(seed), DOMAINS.index("speech"), "set")
    return example, spell(example["text_ids"], example["text_length"])


def test_short_recordings_are_whole_and_keep_their_text():
    for policy in ("aligned", "transcript"):
        example, text = make(maker(text_policy=policy), ramp_record(1.5, text="All of it."))
        assert example["wav_length"] == 12_000
        np.testing.assert_allclose(example["wav"][:12_000], np.arange(12_000) / 100_000)
        assert not example["wav"][12_000:].any()
        assert text == "All of it."


def test_recording_of_exactly_the_clip_is_whole():
    for samples in (15_999, 16_000):
        example, text = make(maker(), ramp_record(samples / TONE_RATE, text="whole"))
        assert (example["wav_length"], text) == (samples, "whole")
    assert make(maker(), ramp_record(16_001 / TONE_RATE, text="whole"))[1] == ""


def test_crops_have_no_text_unless_word_times_are_known():
    record = ramp_record(10.0, text="the whole transcript")
    starts = set()
    for seed in range(20):
        example, text = make(maker(), record, seed)
        start = round(float(example["wav"][0]) * 100_000)
        starts.add(start)
        assert example["wav_length"] == 16_000
        np.testing.assert_allclose(example["wav"], (start + np.arange(16_000)) / 100_000, rtol=1e-5)
        assert text == ""
    assert len(starts) > 15
    assert min(starts) < 20_000
    assert max(starts) > 40_000


def test_a_crop_gets_its_own_words_and_no_others():
    record = ramp_record(10.0, text="never this", words=WORDS)
    for seed in range(20):
        example, text = make(maker(), record, seed)
        start = float(example["wav"][0]) * 100_000 / TONE_RATE
        own = [w for a, b, w in WORDS if a >= start - 0.02 and b <= start + 2.02]
        assert text == " ".join(own)
        assert 1 <= len(own) <= 2


def test_transcript_policy_is_the_published_one():
    example, text = make(
        maker(text_policy="transcript"), ramp_record(10.0, text="all", words=WORDS)
    )
    assert (example["wav_length"], text) == (16_000, "all")


def test_the_record_s_key_decides_the_crop():
    record = ramp_record(10.0)
    first, again, other = (make(maker(), record, seed)[0]["wav"][0] for seed in (1, 1, 2))
    assert first == again != other


def test_resampled_crops_have_their_length_and_pitch():
    for rate in (11_025, 16_000, 44_100, 48_000):
        sound = ArraySound(tone(5.0, 500, rate), rate, "tone")
        example, _ = make(maker(), Record("tone", sound))
        assert example["wav_length"] == 16_000
        spectrum = np.abs(np.fft.rfft(example["wav"] * np.hanning(16_000)))
        assert abs(spectrum.argmax() * TONE_RATE / 16_000 - 500) <= 1


def test_text_that_is_too_long_is_dropped_not_cut():
    assert make(maker(max_text=4), ramp_record(1.0, text="four"))[1] == "four"
    assert make(maker(max_text=4), ramp_record(1.0, text="fours"))[1] == ""


def test_words_make_up_for_a_missing_transcript():
    assert make(maker(), ramp_record(1.0, words=WORDS[:1]))[1] == "w0"


def test_without_tokenizer_there_is_no_text():
    example, _ = make(maker(text_tokenizer=None), ramp_record(1.0, text="text"))
    assert example["text_length"] == 0


def test_unusable_recordings_say_why():
    with pytest.raises(AudioError, match="x: too short"):
        make(maker(), Record("x", ArraySound(tone(0.2), TONE_RATE, "x")))
    with pytest.raises(AudioError, match="x: silent"):
        make(maker(), Record("x", ArraySound(0.001 * tone(1.0), TONE_RATE, "x")))


def test_silent_openings_do_not_condemn_a_long_recording():
    wav = np.concatenate([np.zeros(30 * TONE_RATE, np.float32), tone(40.0)])
    found = 0
    for seed in range(10):
        example, _ = make(maker(), Record("x", ArraySound(wav, TONE_RATE, "x")), seed)
        found += np.abs(example["wav"]).max() > 0.3
    assert found == 10


def test_samples_stay_in_range():
    loud = np.sign(tone(1.0, 400, 11_025)).astype(np.float32)
    example, _ = make(maker(), Record("square", ArraySound(loud, 11_025, "square")))
    assert np.abs(example["wav"]).max() == 1.0


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="not a multiple of 320"):
        maker(clip_samples=16_001)
    with pytest.raises(ValueError, match="text_policy"):
        maker(text_policy="best")
    with pytest.raises(TypeError, match="silence"):
        maker(silence=0.1)


def test_example_ids_follow_the_name_alone(tmp_path):
    ids = []
    for place in ("one", "two"):
        folder = write_corpus(tmp_path / place / "corpus")
        options = dict(
            sample_rate=TONE_RATE, clip_samples=3200, hop=320, batch_size=18, split="all"
        )
        with make_loader(f"librispeech:{folder}", **options) as loader:
            ids.append(set(next(loader).example_id.tolist()))
    assert ids[0] == ids[1]
    assert len(ids[0]) == 18


def test_normalised_text():
    assert normalise("  MISTER QUILTER\tIS THE\n APOSTLE ") == "mister quilter is the apostle"
    assert normalise("Mister ＱUILTER\u00ad’s ﬁn\x00") == "Mister QUILTER ’s fin"
    assert normalise("3, 4!") == "3, 4!"
    assert normalise(" \u200b ") == ""


def test_both_kinds_of_tokenizer():
    import tokenizers

    vocabulary = {"[UNK]": 0, "hello": 1, "world": 2, "<s>": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 3)]
    )
    assert encode(tokenizer, " HELLO WORLD") == [1, 2]
    assert encode(Letters(), "A b") == [65, 32, 98]
