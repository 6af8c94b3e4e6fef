"""The codec of docs/adding.md is what it says: whole, short, and all that a new family takes."""

import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax.codec import layout, registry, store
from llmcodec_jax.codec.inference import Codec
from llmcodec_jax.codec.layout import Tensor, linear
from llmcodec_jax.codec.registry import Family
from llmcodec_jax.types import CodecOutput, Search

PAGE = Path(__file__).parents[2] / "docs/adding.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text().split("## A loss")[0], re.DOTALL)
NAMES = dict(
    nn=nn, jax=jax, jnp=jnp, layout=layout, Tensor=Tensor, linear=linear, Family=Family,
    CodecOutput=CodecOutput, Search=Search, __name__="adding",
)  # fmt: skip


def test_each_part_is_short():
    lines = [[line for line in block.splitlines() if line.strip()] for block in BLOCKS]
    assert [len(block) <= 40 for block in lines] == [True, True]


def test_the_new_family_is_saved_loaded_exported_and_used(tmp_path, monkeypatch):
    space = dict(NAMES)
    for block in BLOCKS:
        exec(block, space)
    monkeypatch.setitem(registry.FAMILIES, "patches", space["PATCHES"])
    module = space["Patches"](hop=160, codebook_size=32)
    wav = jnp.asarray(np.random.default_rng(0).standard_normal((2, 1600)), jnp.float32)
    variables = module.init(jax.random.key(0), wav, method="reconstruct")
    store.save_codec_folder(tmp_path / "folder", module, variables)
    store.save_torch(tmp_path / "published.pt", module, variables)
    for path in ("folder", "published.pt"):
        again, back = store.load(tmp_path / path)
        assert again == module
        assert store.digest(again, back) == store.digest(module, variables)
    codec = Codec(module, variables, buckets=(20,))
    codes = codec.encode(np.asarray(wav[0]))
    output = module.apply(variables, wav, method="encode")
    np.testing.assert_array_equal(codes, output.codes[0])
    assert codec.decode(codes).shape == (1600,)
    assert len(np.unique(codes)) > 1


def test_an_unknown_family_is_refused_with_the_list():
    with pytest.raises(registry.FieldError, match="no codec architecture 'patches'; there are auv"):
        registry.family("patches")
