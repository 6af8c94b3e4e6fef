"""HuBERT and wav2vec 2.0 against transformers: seeded weights, float32 (make/semantics.py)."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from llmcodec_jax.codec import layout
from llmcodec_jax.codec.layout import LayoutError
from llmcodec_jax.semantics import published
from tests.parity.seeded import seeded_tensors, seeded_wav

DATA = Path(__file__).parent / "data"
LENGTHS = (6000, 4100)
CONFIGS = json.loads((DATA / "semantics.json").read_text())


@pytest.fixture(scope="module")
def golden():
    return np.load(DATA / "semantics.npz")


def model(name):
    encoder = published.from_config(CONFIGS[name])
    shapes = {tensor.name: tensor.shape for tensor in published.tensor_table(encoder)}
    return encoder, published.from_published(encoder, seeded_tensors(shapes))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_padded_batch_gives_the_hidden_states_of_single_clips(name, golden):
    encoder, variables = model(name)
    assert set(golden[f"{name}/names"]) - {"masked_spec_embed"} == set(
        layout.to_state_dict(published.tensor_table(encoder), variables)
    )
    wav = np.full((2, max(LENGTHS)), 7.0, np.float32)  # what stands past an end is not read
    for row, length in enumerate(LENGTHS):
        wav[row, :length] = seeded_wav(length, row)
    states, frames = jax.jit(encoder.apply)(variables, wav, np.array(LENGTHS, np.int32))
    assert states.shape[:2] == (encoder.layers + 1, 2)
    for row, length in enumerate(LENGTHS):
        expected = golden[f"{name}/{row}"]
        assert int(frames[row]) == expected.shape[1] == encoder.frames(length)
        np.testing.assert_allclose(states[:, row, : expected.shape[1]], expected, atol=1e-4)


def test_a_folder_opens_again_to_the_bit(tmp_path):
    encoder, variables = model("hubert_large")
    published.save(tmp_path, encoder, variables)
    again, back = published.load(tmp_path)
    assert again == encoder
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_what_cannot_be_run_is_refused_by_name(tmp_path):
    with pytest.raises(LayoutError, match="model_type is 'wavlm'"):
        published.from_config({"model_type": "wavlm"})
    encoder, variables = model("wav2vec2_base")
    published.save(tmp_path, encoder, variables)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(LayoutError, match=r"model.safetensors.*\n.*intermediate_dense.weight"):
        published.load(tmp_path)
