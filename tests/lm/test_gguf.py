"""GGUF: a tiny Llama file of our own making must equal the same model as a Hugging Face folder."""

from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax.lm import decoder, qwen3
from llmcodec_jax.lm.config import ConfigError
from llmcodec_jax.lm.gguf import NAMES
from llmcodec_jax.lm.load import load_lm
from llmcodec_jax.lm.weights import unstacked

DATA = Path(__file__).parents[1] / "parity" / "data" / "lm"
BYTES = "abcdefghijklmnopqrstuvwxyz0123456789.,\u0120"
MERGES = ["t h", "th e", "\u0120 the", "1 2"]


def write(path: Path, config, params, architecture="llama") -> None:
    """The converter's layout: interleaved rotary pairs, [out, in] tensors, vocabulary as text."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.layers)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.ffn_width)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    tokens = ["<|im_start|>", *BYTES, *[pair.replace(" ", "") for pair in MERGES]]
    tokens += [f"<unused{n}>" for n in range(config.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * (len(tokens) - 1)])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    for name, value in unstacked(params):
        module, _, kind = name.rpartition(".")
        parts = module.split(".", 3)
        inner = parts[1] == "layers"
        key = f"blk.{parts[2]}.{NAMES[parts[3]]}" if inner else NAMES[module]
        if key.endswith(("attn_q", "attn_k")) and architecture == "llama":
            halves = value.reshape(-1, 2, config.head_dim // 2, value.shape[1])
            value = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(value.shape))
        writer.add_tensor(f"{key}.{kind}", value.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config, params = qwen3.load_qwen3(DATA / "llama_tied", jnp.float32)
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write(path, config, params)
    return config, params, path


def test_same_model(model):
    config, params, path = model
    found, weights, _ = load_lm(path, jnp.float32)
    assert (found.tied, found.qk_norm, found.rope_theta) == (True, False, config.rope_theta)
    embeds = decoder.embed_text(params, jnp.arange(10)[None])
    np.testing.assert_allclose(
        decoder.logits(found, weights, embeds), decoder.logits(config, params, embeds), atol=1e-5
    )


def test_tokenizer(model):
    _, _, tokenizer = load_lm(model[2], jnp.float32)
    text = "<|im_start|>the the 12."
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids[0] == 0
    names = ["the", "\u0120the"]
    assert ids[1:3] == [tokenizer.token_id(name) for name in names]
    # "smollm" cuts every digit off before merging, so "12" never becomes one token.
    assert ids[-3:] == [tokenizer.token_id(c) for c in "12."]


PARAGRAPH = """The lighthouse keeper had lived alone on the island for eleven years, and in that
time he had learned to read the sea as other people read a newspaper. He knew from the colour of the
water in the morning whether the fishing boats would go out, and from the sound of the wind at
night whether they would come back late. When the radio stopped working in the first week of
winter, he was not afraid. He lit the lamp as he always did, wrote the date in the log, and waited
for the supply ship that came on the last Friday of every month.""".replace("\n", " ")


@pytest.mark.slow
def test_smollm2_perplexity():
    """The value that transformers computes from the same file: 20.4087 on this paragraph."""
    from llmcodec_jax.data.embedded import fetch_lm

    config, params, tokenizer = load_lm(fetch_lm(), jnp.float32)
    ids = jnp.array(tokenizer.encode(PARAGRAPH))
    logits = decoder.logits(config, params, decoder.embed_text(params, ids)[None])[0, :-1]
    nll = jax.nn.logsumexp(logits, axis=-1) - logits[jnp.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(np.exp(nll.mean()), 20.4087, atol=2e-3)


def test_unknown_architecture_is_named(model, tmp_path):
    config, params, _ = model
    write(tmp_path / "other.gguf", config, params, architecture="gemma3")
    with pytest.raises(ConfigError, match="gemma3"):
        load_lm(tmp_path / "other.gguf")


def test_a_damaged_file_is_named(model, tmp_path):
    """Truncations and flipped bytes, mostly in the description: a model or a named error."""
    whole = model[2].read_bytes()
    rng, path, answered = np.random.default_rng(0), tmp_path / "bad.gguf", 0
    mutants = [whole[:size] for size in (0, 3, 8, 20, 200, 2000, len(whole) // 2, len(whole) - 9)]
    for position in [*rng.integers(0, 700, 40), *rng.integers(0, len(whole), 8)]:
        damaged = bytearray(whole)
        damaged[position] ^= int(rng.integers(1, 256))
        mutants.append(bytes(damaged))
    for mutant in mutants:
        path.write_bytes(mutant)
        try:
            load_lm(path, jnp.float32)
        except ConfigError as error:
            answered += "bad.gguf" in str(error)
            continue
        answered += 1  # a number or a name that changes no shape
    assert answered == len(mutants)
