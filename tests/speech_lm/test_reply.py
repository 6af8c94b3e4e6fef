"""A chat LM answers in text, in speech, or in both."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax import audio, generate, speak
from llmcodec_jax.errors import UsageError, UserError
from llmcodec_jax.lm import decoder
from llmcodec_jax.lm.generate import Writer
from llmcodec_jax.lm.sampling import GREEDY
from llmcodec_jax.speech_lm import data, speaker, template
from llmcodec_jax.speech_lm.config import default_config
from llmcodec_jax.speech_lm.method import embed
from llmcodec_jax.speech_lm.reply import LONGEST, Replies
from llmcodec_jax.speech_lm.run import run
from tests.tiny import babble, tiny_lm_config

WORDS = template.Vocabulary(size=10, levels=1, text=60)
SPELLED = " ".join


def random_writer(seed: int) -> Writer:
    """A decoder with random weights; its text table has rows past the tokens that there are."""
    config = tiny_lm_config(2)
    params = decoder.init_params(config, jax.random.key(seed))
    rows = jax.random.normal(jax.random.key(seed + 1), (2, WORDS.rows, config.width))
    allowed = jnp.asarray(WORDS.allowed())
    return Writer(params, rows[0], rows[1:], allowed, None, config)


@jax.jit
def every_score(writer: Writer, ids):
    """ids int32 [S] -> scores [S, rows and text], from one pass that looks back alone."""
    embeds = embed(writer.params, writer.embedding, ids[None])
    hidden = decoder.forward(writer.config, writer.params, embeds).hidden[0]
    text = decoder.head_rows(writer.config, writer.params)
    return hidden @ jnp.concatenate([writer.heads[0], text]).T


def greedy_by_whole_passes(writer: Writer, prompt: np.ndarray) -> list[int]:
    """The same text, a pass over the whole sequence a token, by the grammar of a turn."""
    mark, ids = WORDS.mark, [*prompt.tolist()]
    text = range(WORDS.rows, WORDS.rows + WORDS.text)
    while len(ids) < len(prompt) + LONGEST:
        whole = np.pad(ids, (0, 512 - len(ids)))
        scores = np.asarray(every_score(writer, whole)[len(ids) - 1])
        opening = len(ids) == len(prompt)
        may = [mark("<audio>"), mark("<text>")] if opening else [mark("<audio>"), mark("<end>")]
        may += [] if opening else text
        ids.append(max(may, key=lambda i: scores[i]))
        if ids[-1] in (mark("<audio>"), mark("<end>")):
            break
    return ids[len(prompt) :]


def test_a_reply_is_what_whole_passes_write():
    """In company of other lengths, by the cache, as one pass over everything a token would."""
    several = set()
    for seed in range(4):
        writer = random_writer(seed)
        replies = Replies(writer, WORDS, lambda ids: SPELLED(map(str, ids)))
        turns = [[template.Turn("user", [3, 7, 1])], [template.Turn("user", (), np.arange(8))]]
        asked = [template.chat(WORDS, turn).ids for turn in turns]
        asked = [np.append(ids, WORDS.mark("<assistant>")) for ids in asked]
        keys = jnp.stack([jax.random.key(0)] * 3)
        for prompt, found in zip(asked, replies.write(asked, keys, GREEDY), strict=True):
            wanted = greedy_by_whole_passes(writer, prompt)
            assert found.ids.tolist() == wanted
            assert found.speaks == (wanted[-1] == WORDS.mark("<audio>"))
            said = [i - WORDS.rows for i in wanted if i >= WORDS.rows]
            assert found.text == SPELLED(map(str, said))
            several.add(len(wanted))
    assert len(several) > 1  # replies of more than one length, or nothing was tried


@pytest.fixture(scope="module")
def chatting(tmp_path_factory):
    """An LM from scratch that knows three dialogues by heart; one answer is spoken."""
    folder = tmp_path_factory.mktemp("chat")
    audio.write(folder / "question.wav", babble(0.4, 1), 16_000)
    audio.write(folder / "answer.wav", babble(0.4, 2), 16_000)
    heard = [
        {"role": "user", "audio": "question.wav"},
        {"role": "assistant", "text": "a question"},
    ]
    said = [
        {"role": "user", "text": "go"},
        {"role": "assistant", "text": "on", "audio": "answer.wav"},
    ]
    silent = [{"role": "user", "text": "hm"}, {"role": "assistant", "text": "what"}]
    rows = [{"id": f"{n}", "turns": (heard, said, silent)[n % 3]} for n in range(18)]
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = default_config()
    config.task, config.total_steps = "chat", 60
    config.data.sources = (f"dialogues:{folder / 'd.jsonl'}",)
    config.lm.width, config.lm.layers, config.lm.horizons = 64, 1, 1
    config.data.length, config.data.batch_size, config.data.eval_fraction = 128, 2, 0.3
    config.log.eval_every = config.log.checkpoint_every = config.log.every = 60
    config.log.tensorboard = False
    for group in config.optim.groups.values():
        group.learning_rate = 1e-2
    assert run(config, folder / "run")
    return folder


def test_a_spoken_question_is_answered_in_text(chatting, tmp_path, capsys):
    question = str(chatting / "question.wav")
    given = ["--lm", str(chatting / "run"), "--temperature", "0", "--max-seconds", "1"]
    out = tmp_path / "out.wav"
    assert generate.main([*given, "--ask", question, "--output", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "a question"
    assert not out.exists()
    assert out.with_suffix(".txt").read_text() == "a question\n"
    with pytest.raises(UserError, match="in text alone: what"):
        speak(chatting / "run", "hm", temperature=0.0)


def test_an_answer_has_its_text_and_its_sound(chatting, tmp_path):
    """Beside a question that is answered in text alone, and again: nothing is left to do."""
    rows = [{"id": "t", "text": "go"}, {"id": "q", "ask": str(chatting / "question.wav")}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["--lm", str(chatting / "run"), "--temperature", "0", "--max-seconds", "1"]
    many = [*given, "--input", str(tmp_path / "m.jsonl"), "--output", str(tmp_path / "many")]
    assert generate.main(many) == 0
    names = {path.name for path in (tmp_path / "many").iterdir()}
    assert names == {"t.wav", "t.txt", "q.txt"}
    assert (tmp_path / "many" / "t.txt").read_text() == "on\n"
    lm = speaker.load(chatting / "run")
    (spoken,) = lm.speak([speaker.Request("go")], GREEDY, max_seconds=1.0)
    np.testing.assert_array_equal(
        spoken.codes, lm.codec.encode(audio.load(chatting / "answer.wav", 16_000))
    )
    assert len(audio.read(tmp_path / "many" / "t.wav")[0]) == len(spoken.wav) == 6400
    before = (tmp_path / "many" / "q.txt").stat().st_mtime_ns
    assert generate.main(many) == 0
    assert (tmp_path / "many" / "q.txt").stat().st_mtime_ns == before


def test_only_a_chat_lm_answers():
    codec = types.SimpleNamespace(sample_rate=16_000)
    lm = speaker.SpeechLM(random_writer(0), WORDS, "tts", data.bytes_of, codec)
    with pytest.raises(UsageError, match="trained for tts: it answers nothing"):
        lm.prompt(speaker.Request(question=babble(0.4, 1)))
    with pytest.raises(UsageError, match="one of them"):
        lm.prompt(speaker.Request("a", question=babble(0.4, 1)))
