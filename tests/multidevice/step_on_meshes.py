"""One step on several meshes of simulated devices against one device; run by test_step_sharded.

Arguments: meshes such as 2,4,1. Prints "equal" and the largest difference for each.
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax.lm.decoder import init_params
from llmcodec_jax.training import sharding
from llmcodec_jax.training.optim import path_name
from llmcodec_jax.training.state import init_state
from llmcodec_jax.training.step import train_step
from tests.tiny import tiny_lm_config
from tests.training.test_step import EVERYTHING, tiny_batch, tiny_method


def method():
    """Everything on, but for the log-STFT terms' weights.

    Their gradients hold 1 / |X| and X / |X|: where a bin is almost silent they turn float32
    rounding into differences of 1e-3, on one device too as soon as its batch is split otherwise.
    """
    weights = dataclasses.replace(tiny_method().weights, multi_resolution_stft=0, complex_stft=0)
    return tiny_method(weights=weights)


def one_step(sizes, devices, state, lm, batch) -> dict:
    """What one step leaves behind, as {name: numpy}.

    The optimisers' moments after a first step are its gradients: SGD's trace g, Adam's
    (1 - b1) g. Parameters are left out, for Adam's first step is only the gradient's sign.
    """
    mesh = sharding.make_mesh(*sizes, devices=devices)
    put = lambda tree, rules: jax.device_put(tree, sharding.shardings(tree, mesh, rules))  # noqa: E731
    state, lm = put(state, sharding.STATE_RULES), put(lm, sharding.LM_RULES)
    kept = jax.tree.map(lambda x: x.sharding, state)
    step = functools.partial(train_step, method=method(), phase=EVERYTHING)
    with jax.set_mesh(mesh):
        jitted = jax.jit(step, out_shardings=(kept, sharding.replicated(mesh)))
        after, report = jitted(state, lm, sharding.put_batch(batch, mesh))
    parts = {
        "moments": after.opt_state,
        "judges": after.discriminator_opt_state,
        "bank": after.bank,
        "stats": after.batch_stats,
        "share": after.code_share,
        "report": report,
    }
    flat = jax.tree_util.tree_leaves_with_path(jax.device_get(parts))
    return {path_name(path): np.asarray(value) for path, value in flat}


def main(meshes) -> None:
    lm = init_params(tiny_lm_config(3), jax.random.key(0), jnp.float32)
    state = jax.jit(lambda lm: init_state(method(), lm, 0))(lm)
    state, lm = jax.device_get((state, lm))
    batch = tiny_batch(8)
    expected = one_step((1, 1, 1), jax.devices()[:1], state, lm, batch)
    assert float(expected["report/loss/complex_stft"]) > 0
    assert sum(np.abs(v).sum() for k, v in expected.items() if "ftp_heads" in k) > 0
    assert expected["bank/filled"].sum() == 4
    for sizes in meshes:
        found = one_step(sizes, jax.devices()[: int(np.prod(sizes))], state, lm, batch)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(
                found[name], value, rtol=1e-5, atol=1e-5, err_msg=f"{sizes} {name}"
            )
        worst = max(np.abs(found[n].astype(float) - v).max() for n, v in expected.items())
        print("equal", sizes, worst, flush=True)


if __name__ == "__main__":
    main([tuple(int(n) for n in argument.split(",")) for argument in sys.argv[1:]])
