"""ABX: tokens of the words pass, tokens of the voice or of nothing toss a coin."""

import numpy as np
import pytest

from llmcodec_jax.data.records import ArraySound, Record
from llmcodec_jax.evaluation import abx
from llmcodec_jax.evaluation.reports import EvaluationError

RATE = 1000


class Spoken:
    """Four voices say the same five sentences; a sample is 100 * voice + sentence, over 1000."""

    label = "spoken"

    def __len__(self):
        return 20

    def record(self, index):
        voice, sentence = divmod(index, 5)
        wav = np.full(80 + 3 * voice, (100 * voice + sentence) / 1000, np.float32)
        sound = ArraySound(wav, RATE, "x")
        words = ((0.0, 0.05, f"word{sentence}"), (0.05, 0.06, "a"))
        return Record(f"r{index}", sound, f"sentence {sentence}", words, speaker=f"v{voice}")


class Reader:
    """Codes one digit of what was said, every tenth sample."""

    sample_rate, codebook_size = RATE, 1000

    def __init__(self, what):
        self._what = what

    def encode(self, wav, rate):
        value = np.round(np.asarray(wav)[::10] * 1000).astype(np.int64)
        return {"words": value % 100, "voice": value // 100, "nothing": 0 * value}[self._what]


@pytest.mark.parametrize("unit", ["word", "sentence"])
@pytest.mark.parametrize(("what", "error"), [("words", 0.0), ("voice", 0.5), ("nothing", 0.5)])
def test_what_tokens_follow_decides(what, error, unit):
    report = abx.evaluate(Reader(what), Spoken(), unit, count=60)
    assert report["triples"] == 60
    # Lengths differ a little between voices, which tokens of nothing can tell.
    assert report["error"] == pytest.approx(error, abs=0.0 if unit == "word" else 0.2)


def test_a_triple_is_what_it_says():
    for a, b, x in abx.triples(abx.pieces(Spoken(), "sentence"), 30):
        assert a.text == x.text != b.text
        assert a.voice == b.voice != x.voice


def test_a_corpus_without_shared_words_is_refused():
    found = [abx.Piece(f"t{i}", f"v{i}", i, 0.0, 1.0) for i in range(5)]
    with pytest.raises(EvaluationError, match="said by two voices"):
        abx.triples(found, 10)
