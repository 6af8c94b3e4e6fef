"""A tiny speech LM, trained and heard through the commands a user would type."""

import json
import os
import subprocess
import sys
import types
import wave
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from llmcodec_jax import audio, export_tokens, generate, load_codec
from llmcodec_jax.codec import tokens
from llmcodec_jax.errors import UsageError
from llmcodec_jax.lm import decoder, huggingface
from llmcodec_jax.lm.sampling import GREEDY, Sampling
from llmcodec_jax.lm.tokenizer import TextTokenizer
from llmcodec_jax.speech_lm import corpus, data, sources, speaker, template
from llmcodec_jax.speech_lm.config import default_config, read_config
from llmcodec_jax.speech_lm.run import run
from llmcodec_jax.training.resume import CheckpointError
from tests.tiny import babble, tiny_lm_config, write_corpus


@pytest.fixture(scope="module")
def codec():
    return load_codec("mini")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    os.environ["LLMCODEC_CACHE"] = str(folder / "cache")
    return write_corpus(folder / "speech", speakers=2, clips=4)


def tiny(source, task="tts", steps=4):
    config = default_config()
    config.task, config.total_steps = task, steps
    config.data.sources = (f"librispeech:{source}",)
    config.lm.width, config.lm.layers, config.lm.horizons = 64, 1, 3
    config.data.length, config.data.batch_size, config.data.eval_fraction = 256, 2, 0.3
    config.data.voice_seconds = 0.5
    config.log.every = config.log.checkpoint_every = config.log.eval_every = 2
    config.log.tensorboard = False
    return config


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
    """A run that was stopped half-way and taken up again."""
    folder = tmp_path_factory.mktemp("runs")
    run(tiny(source, steps=2), folder / "run")
    assert run(tiny(source), folder / "run")
    return folder / "run"


def test_a_run_resumes_and_its_rows_are_whole(trained, source):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss/total" in row] == [0, 1, 2, 3]
    assert {"eval/token/1", "eval/accuracy/3"} <= set(rows[0])
    config = tiny(source)
    config.lm.width = 128
    with pytest.raises(CheckpointError, match=r"lm\.width"):
        run(config, trained)


def test_tokens_are_coded_once(trained, source, codec, monkeypatch):
    """The second reading needs no codec: only its digest."""
    monkeypatch.setattr(type(codec), "encode", lambda *_: pytest.fail("coded again"))
    clips = sources.read(f"librispeech:{source}", codec, 1)
    assert len(clips) == 8
    assert {clip.speaker for clip in clips} == {"1", "2"}


def test_a_table_of_tokens_is_read_as_it_is(codec, tmp_path):
    codes = codec.encode(babble(1.0, 1), 16000)
    tokens.write(tmp_path / "npz" / "a.npz", tokens.of_codec(codec, codes, 16000))
    table = tmp_path / "t.parquet"
    given = ["--input", str(tmp_path / "npz"), "--output", str(table)]
    assert export_tokens.main(given) == 0
    clip = sources.read(f"tokens:{table}", codec, 1)[0]
    np.testing.assert_array_equal(clip.codes, codes)
    other = types.SimpleNamespace(digest="another", codebook_size=codec.codebook_size)
    with pytest.raises(corpus.CorpusError, match="made by another codec"):
        sources.read(f"tokens:{table}", other, 1)


def test_dialogues_are_read_as_they_are(codec, source, tmp_path, caplog):
    audio.write(tmp_path / "q.wav", babble(0.4, 1), 16000)
    turns = [{"role": "user", "audio": "q.wav"}, {"role": "assistant", "text": "Yes"}]
    lost = [{"role": "user", "audio": "nowhere.wav"}]
    lines = [{"id": "a", "turns": turns}, {"id": "b", "turns": lost}]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    caplog.set_level("WARNING", "llmcodec_jax")
    (clip,) = sources.read(f"dialogues:{path}", codec, 1, tmp_path / "cache")
    assert "1 dialogues left out, first b" in caplog.text
    config = tiny(source, task="chat")
    words = template.Vocabulary(codec.codebook_size, 1, 256)
    make = data.Sequences(read_config(config), words, 50.0, data.bytes_of, [clip])
    ids, learned = make(clip, np.random.default_rng(0))
    assert ids[:2].tolist() == [words.mark("<user>"), words.mark("<audio>")]
    assert ids[2:22].tolist() == codec.encode(babble(0.4, 1), 16000).tolist()
    said = [words.mark("<text>"), *(ord(c) + words.rows for c in "yes"), words.mark("<end>")]
    assert ids[-5:].tolist() == said
    assert learned[-5:].all()
    assert not learned[:-5].any()
    path.write_text(json.dumps({"turns": [{"role": "system", "text": "x"}]}) + "\n")
    with pytest.raises(UsageError, match=r"d\.jsonl:1: a turn's role"):
        sources.read(f"dialogues:{path}", codec, 1, tmp_path / "cache")


def test_speech_comes_out(trained, tmp_path, capsys):
    audio.write(tmp_path / "voice.wav", babble(0.6, 2), 16000)
    out = tmp_path / "out.wav"
    given = ["--lm", str(trained), "--max-seconds", "0.5", "--seed", "1"]
    command = [*given, "--text", "one", "--voice", str(tmp_path / "voice.wav")]
    assert generate.main([*command, "--output", str(out)]) == 0
    assert "tokens a pass" in capsys.readouterr().out
    wav, rate = audio.read(out)
    assert rate == 16000
    assert 0 < len(wav) <= 0.5 * rate
    lines = [{"text": "one", "seed": 5}, {"text": "two", "voice": str(tmp_path / "no.wav")}]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    many = [*given, "--input", str(tmp_path / "many.jsonl"), "--output", str(tmp_path / "many")]
    assert generate.main(many) == 1
    assert "000002: " in capsys.readouterr().err
    assert (tmp_path / "many" / "000001.wav").exists()


def test_what_an_lm_was_not_trained_for_is_refused(trained, tmp_path, capsys):
    audio.write(tmp_path / "clip.wav", babble(0.6, 2), 16000)
    given = ["--lm", str(trained), "--output", str(tmp_path / "x.wav")]
    assert generate.main([*given, "--continue", str(tmp_path / "clip.wav")]) == 2
    assert "trained for tts" in capsys.readouterr().err
    assert generate.main([*given, "--text", "a", "--top-p", "0"]) == 2
    assert generate.main(["--lm", str(tmp_path), "--text", "a", "--output", "x.wav"]) == 2
    assert "no speech_lm.json there" in capsys.readouterr().err


def test_requests_do_not_depend_on_their_company_and_heads_do_not_change_greedy(trained):
    lm = speaker.load(trained)
    asked = [speaker.Request("one", seed=3), speaker.Request("two words", seed=4)]
    both = lm.write(asked, Sampling(), 0.5)
    alone = lm.write(asked[1:], Sampling(), 0.5, batch_size=2)
    np.testing.assert_array_equal(both[1].ids, alone[0].ids)
    plain, several = (lm.write(asked, GREEDY, 0.5, heads=k) for k in (1, 3))
    for one, other in zip(plain, several, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
    with pytest.raises(UsageError, match="cannot stream"):
        next(lm.stream(asked[0], GREEDY))


@pytest.mark.slow
def test_a_pretrained_lm_chats_by_adapters_alone(source, tmp_path):
    """The text LM stays as it is, speech is written and text is learned beside it."""
    words = {word: i for i, word in enumerate(["?", "speaker", "says", *"0123456789"])}
    built = Tokenizer(models.WordLevel(words, unk_token="?"))
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = tiny_lm_config(2)
    params = decoder.init_params(config, jax.random.key(0))
    huggingface.export(tmp_path / "lm", config, params, TextTokenizer(built))
    given = tiny(source, task="chat")
    given.lm.path, given.lm.tune, given.lm.horizons, given.lm.rank = (
        str(tmp_path / "lm"), "lora", 1, 4,
    )  # fmt: skip
    given.log.every = 1
    assert run(given, tmp_path / "run")
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss/token/1"] for row in rows if "loss/token/1" in row]
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    lm = speaker.load(tmp_path / "run")
    assert lm.writer.heads.shape[0] == 1
    spoken = next(lm.speak([speaker.Request("speaker 1")], Sampling(), max_seconds=0.4))
    assert len(spoken.wav) > 0
    with pytest.raises(UsageError, match="no voice prompt"):
        lm.prompt(speaker.Request("speaker 1", voice=babble(0.5, 1)))


@pytest.mark.slow
def test_the_command_trains_and_a_clip_is_continued(source, tmp_path):
    """As a user would type it."""
    config = Path(__file__).parents[2] / "configs/speech/continuation.py"
    command = [sys.executable, "-m", "llmcodec_jax.speech_lm.train", "--config", str(config)]
    command += ["--workdir", str(tmp_path), f"--config.data.sources=('librispeech:{source}',)"]
    command += ["--config.total_steps=6", "--config.lm.width=64", "--config.lm.layers=1"]
    command += ["--config.data.length=128", "--config.data.batch_size=2", "--config.log.every=1"]
    command += ["--config.data.eval_fraction=0.3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    clip = sorted(source.rglob("*.flac"))[-1]
    given = ["--lm", str(tmp_path), "--continue", str(clip), "--output", str(tmp_path / "c.wav")]
    assert generate.main([*given, "--prompt-seconds", "1", "--max-seconds", "0.5"]) == 0
    with wave.open(str(tmp_path / "c.wav")) as file:
        assert file.getnframes() > 16000
