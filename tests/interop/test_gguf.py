"""GGUF: a tiny Llama file of our own making must equal the same model as a Hugging Face folder."""

from pathlib import Path

import gguf
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax.interop.gguf import NAMES
from llmcodec_jax.lm import qwen3
from llmcodec_jax.lm.config import ConfigError
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
    embeds = qwen3.embed_text(params, jnp.arange(10)[None])
    np.testing.assert_allclose(
        qwen3.logits(found, weights, embeds), qwen3.logits(config, params, embeds), atol=1e-5
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


def test_unknown_architecture_is_named(model, tmp_path):
    config, params, _ = model
    write(tmp_path / "other.gguf", config, params, architecture="gemma3")
    with pytest.raises(ConfigError, match="gemma3"):
        load_lm(tmp_path / "other.gguf")
