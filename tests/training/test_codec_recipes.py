"""The recipes of configs/codecs: each builds, and its optimiser owns every parameter once."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from llmcodec_jax.training.config import read_config
from llmcodec_jax.training.method import Method
from llmcodec_jax.training.optim import assign

RECIPES = sorted(
    path.stem
    for path in (Path(__file__).parents[2] / "configs/codecs").glob("*.py")
    if path.stem != "recipe"
)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_its_family_from_scratch(name):
    config = read_config(importlib.import_module(f"configs.codecs.{name}").get_config())
    method = Method.from_config(config, None)
    codec = method.codec
    assert codec.dtype == "bfloat16"
    assert method.from_scratch
    wav = jax.ShapeDtypeStruct((1, 4 * codec.hop), jnp.float32)
    shapes = jax.eval_shape(lambda x: codec.init(jax.random.key(0), x, method="reconstruct"), wav)
    labels = assign({"codec": shapes["params"]}, method.groups)
    assert set(jax.tree.leaves(labels)) == {"encoder", "decoder"}
