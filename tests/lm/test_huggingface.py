"""Hugging Face folders: round trip, shards, sharded reading, the merged audio vocabulary."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from llmcodec_jax.lm import decoder, huggingface, qwen3, vocab
from llmcodec_jax.lm.config import ConfigError
from llmcodec_jax.lm.load import load_lm
from llmcodec_jax.lm.tokenizer import TextTokenizer
from llmcodec_jax.lm.weights import digest

DATA = Path(__file__).parents[1] / "parity" / "data" / "lm"
CODES = 12


@pytest.fixture
def tokenizer():
    """Seventy words: fewer than the models' eighty rows, as published tables are padded too."""
    words = {f"w{index}": index for index in range(70)}
    built = Tokenizer(models.WordLevel(words, unk_token="w0"))
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return TextTokenizer(built)


@pytest.mark.parametrize("name", ["qwen3_tied", "llama_untied"])
def test_round_trip_is_exact(tmp_path, name, monkeypatch):
    """Import, export, import: the same tensors as the original file, in several shards too."""
    config, params = qwen3.load_qwen3(DATA / name, jnp.float32)
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 50_000)
    huggingface.export(tmp_path, config, params)
    assert (tmp_path / "model.safetensors.index.json").exists()
    again, params_again = qwen3.load_qwen3(tmp_path, jnp.float32)
    assert again == config
    assert digest(params_again) == digest(params)
    original, written = {}, {}
    for path in (DATA / name).glob("*.safetensors"):
        original |= load_file(path)
    for path in tmp_path.glob("*.safetensors"):
        written |= load_file(path)
    assert original.keys() == written.keys()
    for key, value in original.items():
        np.testing.assert_array_equal(value, written[key])


@pytest.mark.parametrize("name", ["qwen3_tied", "llama_untied"])
def test_merged_vocabulary(tmp_path, name, tokenizer):
    """Trained input and head rows both survive, text rows stay, and nothing is overwritten."""
    config, params = qwen3.load_qwen3(DATA / name, jnp.float32)
    if config.vocab_size != 80:
        config, params = truncated(config, params, 80)
    before = digest(params)
    keys = jax.random.split(jax.random.key(0), 2)
    rows, head = (jax.random.normal(key, (CODES, config.width)) for key in keys)
    huggingface.export(tmp_path, config, params, tokenizer, rows, head)
    assert digest(params) == before
    merged, weights, text = load_lm(tmp_path, jnp.float32)
    assert not merged.tied
    assert merged.vocab_size == 82
    assert text.encode("w3 <CODEC_0> w5<CODEC_11>") == [3, 70, 5, 81]
    table = weights["embed"]["embedding"]
    np.testing.assert_array_equal(table[:70], params["embed"]["embedding"][:70])
    np.testing.assert_array_equal(table[70:], rows)
    full_head = decoder.head_rows(merged, weights)
    np.testing.assert_array_equal(full_head[:70], decoder.head_rows(config, params)[:70])
    np.testing.assert_array_equal(full_head[70:], head)
    body = {name: value for name, value in params.items() if name in ("blocks", "norm")}
    assert digest(body) == digest({name: weights[name] for name in body})
    for a, b in zip(vocab.read_audio_rows(tmp_path), (rows, head), strict=True):
        np.testing.assert_array_equal(a, b)


def test_tokenizer_settings_survive(tmp_path, tokenizer):
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "w9", "other": 1}')
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    tokenizer._tokenizer.save(str(tmp_path / "tokenizer.json"))
    read = TextTokenizer.from_file(tmp_path / "tokenizer.json").with_tokens(["<CODEC_0>"])
    (tmp_path / "out").mkdir()
    read.save(tmp_path / "out")
    table = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (table["eos_token"], table["chat_template"]) == ("w9", "{{ messages }}")


def truncated(config, params, rows):
    """The same tied model with a shorter table."""
    table = {"embedding": params["embed"]["embedding"][:rows]}
    return type(config)(**{**config.__dict__, "vocab_size": rows}), {**params, "embed": table}


def test_tied_model_with_equal_rows_stays_tied(tmp_path, tokenizer):
    config, params = truncated(*qwen3.load_qwen3(DATA / "qwen3_tied", jnp.float32), 80)
    rows = np.ones((CODES, config.width), np.float32)
    huggingface.export(tmp_path, config, params, tokenizer, rows, rows)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"]
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


def test_merging_twice_or_without_a_tokenizer_is_refused(tmp_path, tokenizer):
    config, params = truncated(*qwen3.load_qwen3(DATA / "qwen3_tied", jnp.float32), 80)
    rows = np.ones((CODES, config.width), np.float32)
    with pytest.raises(ValueError, match="tokenizer"):
        huggingface.export(tmp_path, config, params, None, rows, rows)
    taken = tokenizer.with_tokens(["<CODEC_0>"])
    with pytest.raises(ValueError, match="already"):
        huggingface.export(tmp_path, config, params, taken, rows, rows)


def test_missing_files_and_tensors_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        qwen3.load_qwen3(tmp_path)
    (tmp_path / "config.json").write_text((DATA / "llama_tied" / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        qwen3.load_qwen3(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(
        (DATA / "qwen3_untied" / "model.safetensors").read_bytes()
    )
    (tmp_path / "config.json").write_text((DATA / "llama_untied" / "config.json").read_text())
    with pytest.raises(ConfigError, match="bias"):
        qwen3.load_qwen3(tmp_path)


def test_weights_that_are_not_finite_are_named(tmp_path):
    source = DATA / "llama_tied"
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    name = next(n for n in tensors if n.endswith("layers.1.mlp.up_proj.weight"))
    tensors[name][3, 2] = np.nan
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.up_proj\.weight .* not finite"):
        qwen3.load_qwen3(tmp_path)


def test_damaged_folders_name_their_file(tmp_path):
    source = DATA / "llama_tied"
    damages = {
        "config.json": [b"", b"{", b"[]", b"\xff\xfe", b'{"model_type": []}'],
        "model.safetensors": [b"", b"abc", None, b"\xff" * 64],
    }
    for name, contents in damages.items():
        for content in contents:
            for file in source.iterdir():
                (tmp_path / file.name).write_bytes(file.read_bytes())
            whole = (tmp_path / name).read_bytes()
            (tmp_path / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
            with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
                load_lm(tmp_path, jnp.float32)


def test_a_description_of_another_model_is_refused(tmp_path):
    for file in (DATA / "llama_tied").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    for field, value in (("num_hidden_layers", 10**6), ("intermediate_size", 10**7)):
        (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
        with pytest.raises(ConfigError, match=str(tmp_path)):
            load_lm(tmp_path, jnp.float32)
