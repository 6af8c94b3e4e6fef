"""A codec with fewer codes or levels starts one with more."""

import jax
import numpy as np
import pytest

from configs import mini
from llmcodec_jax.codec import store
from llmcodec_jax.codec.auv.model import AUV
from llmcodec_jax.codec.layout import LayoutError
from llmcodec_jax.codec.quantizer import grow_codebook, nearest, normalise
from llmcodec_jax.errors import UsageError
from llmcodec_jax.training.config import read_config
from llmcodec_jax.training.method import Method
from llmcodec_jax.training.warm_start import add_levels, grow_codebooks, read_codec
from tests.codec.families import EXAMPLES
from tests.tiny import SMALL, init

ROWS = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)


def test_old_rows_stay_and_new_ones_lie_in_their_cells():
    grown = grow_codebook(ROWS, 100)
    assert grown.shape == (100, 8)
    assert grown.dtype == np.float32
    np.testing.assert_array_equal(grown[:32], ROWS)
    assert len(np.unique(grown, axis=0)) == 100
    parents = np.arange(32, 100) % 32
    found = nearest(normalise(grown[None, 32:]), normalise(ROWS), None, 64)[0]
    assert np.mean(np.asarray(found) == parents) > 0.95


def test_a_grown_codec_codes_as_finely_as_the_one_it_was():
    codec = AUV(**SMALL)
    variables = init(codec)
    size = 3 * codec.codebook_size
    larger = codec.clone(codebook_size=size, partitions=None)
    grown = grow_codebooks(jax.device_get(variables), size)
    wav = np.random.default_rng(1).normal(size=(1, 20 * codec.hop)).astype(np.float32) * 0.1
    before = codec.apply(variables, wav, method="encode")
    after = larger.apply(grown, wav, method="encode")
    assert after.vq_loss[0] <= 1.05 * before.vq_loss[0]
    usage = grown["batch_stats"]["quantizer"]["level_0"]["usage"]
    np.testing.assert_allclose(usage, 1 / size)


def test_another_level_changes_no_sound_until_it_learns():
    codec = AUV(**SMALL)
    variables = jax.device_get(init(codec))
    two = codec.clone(levels=2)
    grown = add_levels(variables, two)
    wav = np.random.default_rng(1).normal(size=(2, 20 * codec.hop)).astype(np.float32) * 0.1
    _, before = codec.apply(variables, wav, method="reconstruct")
    _, after = two.apply(grown, wav, method="reconstruct")
    np.testing.assert_allclose(after, before, atol=1e-6)
    output = two.apply(grown, wav, method="encode")
    assert output.codes.shape == (2, 20, 2)
    # Its codes count as unused, so a revival places every one on the data, and those of the first
    # level stay.
    revived = two.revive(grown, output, jax.random.key(0))["params"]["quantizer"]
    old, new = grown["params"]["quantizer"], revived
    np.testing.assert_array_equal(new["level_0"]["codebook"], old["level_0"]["codebook"])
    moved = np.any(new["level_1"]["codebook"] != old["level_1"]["codebook"], axis=1)
    assert moved.all()
    searched = two.apply(grown, output.latent, output.codes, method="search_inputs")[:, :, 1]
    similarity = normalise(new["level_1"]["codebook"]) @ normalise(searched.reshape(-1, 8)).T
    assert np.min(np.max(similarity, axis=1)) > 0.99


def test_read_codec_adds_the_levels_that_the_config_asks_for():
    c = mini.get_config()
    c.codec.levels = 2
    codec = Method.from_config(read_config(c), None).codec
    read = read_codec("mini-0.1", Method.from_config(read_config(c), None))
    wav = jax.ShapeDtypeStruct((1, 4 * codec.hop), np.float32)
    wanted = jax.eval_shape(lambda x: codec.init(jax.random.key(0), x, method="reconstruct"), wav)
    assert jax.tree.map(np.shape, read) == jax.tree.map(lambda leaf: leaf.shape, dict(wanted))


def test_the_shipped_codec_starts_the_recipe_with_more_codes():
    config = read_config(mini.get_config())
    codec = Method.from_config(config, None).codec
    held, variables = store.load(config.init)
    assert held.codebook_size < codec.codebook_size == 8192
    grown = grow_codebooks(variables, codec.codebook_size)
    wav = jax.ShapeDtypeStruct((1, 4 * codec.hop), np.float32)
    wanted = jax.eval_shape(lambda x: codec.init(jax.random.key(0), x, method="reconstruct"), wav)
    assert jax.tree.map(np.shape, grown) == jax.tree.map(lambda leaf: leaf.shape, dict(wanted))


def test_a_codec_with_more_codes_names_the_flag(tmp_path):
    codec = AUV(**SMALL)
    store.save_codec_folder(tmp_path, codec, init(codec))
    c = mini.get_config()
    c.codec.codebook_size = codec.codebook_size // 2
    method = Method.from_config(read_config(c), None)
    with pytest.raises(UsageError, match=f"codec.codebook_size={codec.codebook_size}$"):
        read_codec(str(tmp_path), method)


def test_another_architecture_is_told_first(tmp_path):
    module = EXAMPLES["bigcodec"]
    store.save_codec_folder(tmp_path, module, init(module))
    c = mini.get_config()
    c.codec.codebook_size = module.codebook_size // 2
    with pytest.raises(LayoutError, match="architecture bigcodec, not auv"):
        read_codec(str(tmp_path), Method.from_config(read_config(c), None))
