"""The Vocos decoder: a clip sounds the same in any company, and its layout covers it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from llmcodec_jax.codec import layout, vocos


def small(**fields) -> vocos.VocosDecoder:
    return vocos.VocosDecoder(hop=20, width=64, hidden=96, layers=2, **fields)


@pytest.fixture(scope="module", params=["plain", "conditioned"])
def decoder(request):
    conditioned = request.param == "conditioned"
    module = small(conditions=3, position_net=True) if conditioned else small()
    variables = module.init(jax.random.key(0), jnp.zeros((1, 4, 24)))
    # Fresh norms, gains and biases are ones and zeros, under which too much would look alike.
    keys = iter(jax.random.split(jax.random.key(1), 200))
    return module, jax.tree.map(
        lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape), variables
    )


def test_a_padded_clip_sounds_as_it_does_alone(decoder):
    module, variables = decoder
    features = jax.random.normal(jax.random.key(2), (2, 11, 24))
    mask = jnp.arange(11) < jnp.array([[11], [7]])
    together = module.apply(variables, features, mask)
    np.testing.assert_allclose(together[:1], module.apply(variables, features[:1]), atol=1e-5)
    alone = module.apply(variables, features[1:, :7])
    np.testing.assert_allclose(together[1:, : 7 * 20], alone, atol=1e-5)
    assert np.std(alone) > 1e-3


def test_conditions_sound_different():
    module = small(conditions=3)
    features = jax.random.normal(jax.random.key(2), (1, 5, 24))
    variables = module.init(jax.random.key(0), features)
    variables["params"]["norm"]["scale"] *= jnp.array([1.0, 2.0, 3.0])[:, None]
    wavs = [module.apply(variables, features, None, condition) for condition in range(3)]
    assert np.abs(wavs[0] - wavs[1]).max() > 1e-3
    assert np.abs(wavs[1] - wavs[2]).max() > 1e-3


def test_the_layout_names_every_parameter_once(decoder):
    module, variables = decoder
    table = vocos.tensor_table(module, 24, ("params",))
    paths = [tensor.path for tensor in table if tensor.constant is None]
    assert sorted(paths) == sorted(flatten_dict(variables))
    assert len({tensor.name for tensor in table}) == len(table)
    again = layout.to_variables(table, layout.to_state_dict(table, variables))
    assert jax.tree.all(jax.tree.map(np.array_equal, again, dict(variables)))
