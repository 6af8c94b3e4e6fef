"""The codec against values of the published code (method.md 9): seeded weights, float32."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax.codec import store
from llmcodec_jax.codec.auv.model import AUV
from llmcodec_jax.codec.auv.published import infer_fields, tensor_table, to_published
from llmcodec_jax.codec.auv.stft import margin
from llmcodec_jax.types import DOMAINS

DATA = Path(__file__).parent / "data"
PARTITIONS = ((0, 200), (0, 300), (0, 512), (0, 512), (300, 512))


@pytest.fixture(scope="module")
def golden():
    return np.load(DATA / "auv_small_io.npz")


@pytest.fixture(scope="module")
def auv():
    codec, variables = store.load(DATA / "auv_small.pt")
    return codec.clone(partitions=PARTITIONS), variables


def apply(auv, *args, method):
    codec, variables = auv
    return jax.jit(lambda v, *a: codec.apply(v, *a, method=method))(variables, *args)


def test_architecture_is_read_from_the_tensors(auv):
    codec = auv[0]
    assert (codec.width, codec.encoder_layers, codec.decoder_layers) == (128, 2, 3)
    assert (codec.codebook_size, codec.code_dim, codec.hop, codec.levels) == (512, 8, 320, 1)


def test_tokens_latents_and_reconstruction(auv, golden):
    output, wav = apply(auv, golden["wav"], method="reconstruct")
    np.testing.assert_array_equal(output.codes, golden["tokens"])
    np.testing.assert_allclose(output.latent, golden["before_quantize"], atol=2e-4)
    np.testing.assert_allclose(output.quantised, golden["quantized"], atol=2e-4)
    np.testing.assert_allclose(wav, golden["recon"], atol=1e-3)


def test_decoding_the_codes_gives_the_same_audio(auv, golden):
    wav = apply(auv, golden["tokens"], method="decode_codes")
    np.testing.assert_allclose(wav, golden["recon"], atol=1e-3)


def test_published_masking(auv, golden):
    """The published batching reflects the whole batch, not each clip: the core takes that too."""
    side = margin(auv[0].hop)
    padded = np.pad(golden["wav"], ((0, 0), (side, side)), mode="reflect")
    output = apply(auv, padded, golden["lengths"].astype(np.int32), method="encode_padded")
    valid = np.asarray(output.frame_mask)
    assert valid.sum(axis=1).tolist() == [50, 30]
    np.testing.assert_array_equal(np.asarray(output.codes)[valid], golden["tokens_masked"][valid])
    np.testing.assert_allclose(
        np.asarray(output.latent)[valid], golden["before_quantize_masked"][valid], atol=2e-4
    )


def test_partitions_losses_and_every_gradient(auv, golden):
    codec, variables = auv
    domain = jnp.array([DOMAINS.index("speech"), DOMAINS.index("other")])

    @jax.jit
    @jax.grad
    def gradient(params):
        return total(params)[0]

    def total(params):
        output, wav = codec.apply(
            {**variables, "params": params}, golden["wav"], None, domain, method="reconstruct"
        )
        return output.vq_loss.mean() + jnp.mean(jnp.square(wav - golden["wav"])), output

    value, output = jax.jit(total)(variables["params"])
    np.testing.assert_array_equal(output.codes, golden["tokens_partitioned"])
    np.testing.assert_allclose(output.vq_loss.mean(), golden["vq_loss"], atol=1e-4)
    np.testing.assert_allclose(value, golden["total"], atol=1e-4)
    gradients = {"params": gradient(variables["params"]), "batch_stats": variables["batch_stats"]}
    ours = to_published(codec, gradients)
    norms = json.loads((DATA / "auv_small_grad_norms.json").read_text())
    assert len(norms) == 145
    for name, norm in norms.items():
        assert np.linalg.norm(ours[name]) == pytest.approx(norm, rel=0.01), name


def test_full_size_names_and_shapes():
    published = json.loads((DATA / "auv_state_dict_shapes.json").read_text())
    table = tensor_table(AUV())
    assert {t.name: list(t.shape) for t in table} == {n: s for n, (s, _) in published.items()}
    inferred = infer_fields({name: tuple(shape) for name, (shape, _) in published.items()})
    default = AUV()
    assert {name: getattr(default, name) for name in inferred} == inferred


def test_full_size_parameter_count():
    codec = AUV()
    wav = jax.ShapeDtypeStruct((1, 1600), jnp.float32)
    init = lambda key, wav: codec.init(key, wav, method="reconstruct")  # noqa: E731
    shapes = jax.eval_shape(init, jax.random.key(0), wav)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 122_628_882
