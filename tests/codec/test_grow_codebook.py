"""A codec with fewer codes starts one with more."""

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
from llmcodec_jax.training.run import grow_codebooks, read_codec
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
