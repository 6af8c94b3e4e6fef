"""Language models against values that transformers computed on the same random weights.

`qwen3_tied` comes with the method's reference values; `llama_*` (llama3-stretched rotary,
biases, shards with an index; tied) and `qwen3_untied` were made with transformers 5.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax.lm import decoder, qwen3
from llmcodec_jax.lm.generate import generate

DATA = Path(__file__).parent / "data" / "lm"
TOLERANCE = 2e-4


def test_qwen3_values():
    config, params = qwen3.load_qwen3(DATA / "qwen3_tied", jnp.float32)
    golden = np.load(DATA / "qwen3_tied" / "io.npz")
    embeds = decoder.embed_text(params, golden["input_ids"])
    lengths = jnp.asarray(golden["attention_mask"].sum(axis=1))

    def close(ours, name):
        np.testing.assert_allclose(ours, golden[name], atol=TOLERANCE)

    close(decoder.hidden_states(config, params, embeds), "hidden_ids")
    close(decoder.logits(config, params, embeds), "logits_ids")
    close(decoder.logits(config, params, golden["inputs_embeds"]), "logits_embeds")
    close(decoder.hidden_states(config, params, embeds, lengths), "hidden_masked")


def test_qwen3_gradient():
    config, params = qwen3.load_qwen3(DATA / "qwen3_tied", jnp.float32)
    golden = np.load(DATA / "qwen3_tied" / "io.npz")

    def total(embeds):
        return jax.nn.logsumexp(decoder.logits(config, params, embeds), axis=-1).sum()

    gradient = jax.grad(total)(jnp.asarray(golden["inputs_embeds"]))
    np.testing.assert_allclose(gradient, golden["grad_embeds_logsumexp"], atol=TOLERANCE)


@pytest.mark.parametrize("name", ["llama_untied", "llama_tied", "qwen3_untied"])
def test_family(name):
    config, params = qwen3.load_qwen3(DATA / name, jnp.float32)
    golden = np.load(DATA / name / "io.npz")
    embeds = decoder.embed_text(params, golden["ids"])
    lengths = jnp.asarray(golden["lengths"])
    states = decoder.hidden_states(config, params, embeds, lengths)
    np.testing.assert_allclose(states, golden["hidden"], atol=TOLERANCE)
    valid = jnp.arange(embeds.shape[1]) < lengths[:, None]

    def total(embeds):
        logits = decoder.logits(config, params, embeds, lengths)
        return jnp.sum(valid * jax.nn.logsumexp(logits, axis=-1)), logits

    gradient, logits = jax.grad(total, has_aux=True)(embeds)
    np.testing.assert_allclose(logits, golden["logits"], atol=TOLERANCE)
    np.testing.assert_allclose(gradient, golden["grad"], atol=TOLERANCE)


@pytest.mark.parametrize("name", ["llama_untied", "qwen3_untied"])
def test_greedy_generation(name):
    config, params = qwen3.load_qwen3(DATA / name, jnp.float32)
    golden = np.load(DATA / name / "io.npz")
    table, head = params["embed"]["embedding"], decoder.head_rows(config, params)
    prompt = jnp.pad(table[golden["ids"][:1]], ((0, 0), (0, 3), (0, 0)), constant_values=9.0)
    ids = generate(
        config, params, prompt, jnp.array([13]), len(golden["greedy"]), embedding=table, head=head
    )
    assert ids[0].tolist() == golden["greedy"].tolist()


def test_version_4_config_reads_the_same(tmp_path):
    """transformers 4 writes rope_theta and rope_scaling at the top level."""
    raw = json.loads((DATA / "llama_untied" / "config.json").read_text())
    rope = raw.pop("rope_parameters")
    old = raw | {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    from llmcodec_jax.lm.config import from_huggingface

    new = json.loads((DATA / "llama_untied" / "config.json").read_text())
    assert from_huggingface(old) == from_huggingface(new)
