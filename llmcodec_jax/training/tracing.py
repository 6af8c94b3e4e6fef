"""The train step as it is compiled: by the loop for arrays, by `compile_check` for shapes."""

from __future__ import annotations

import functools

import jax

from llmcodec_jax.training import sharding
from llmcodec_jax.training.method import Method
from llmcodec_jax.training.schedules import Phase
from llmcodec_jax.training.state import init_state
from llmcodec_jax.training.step import train_step


def abstract_state(method: Method, lm_params, seed: int, mesh: jax.sharding.Mesh):
    """Shapes, dtypes and shardings of the state; nothing is computed. `lm_params` may be shapes."""
    shapes = jax.eval_shape(lambda lm: init_state(method, lm, seed), lm_params)
    return sharding.placed(shapes, sharding.shardings(shapes, mesh, sharding.STATE_RULES))


def lower_step(method: Method, phase: Phase, mesh: jax.sharding.Mesh, state, lm_params, batch):
    """The step of one phase -> (lowered, ready to compile; its jaxpr). Arrays or shapes alike."""
    step = functools.partial(train_step, method=method, phase=phase)
    kept = jax.tree.map(lambda x: x.sharding, state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(kept, sharding.replicated(mesh)))
    with jax.set_mesh(mesh):
        traced = jitted.trace(state, lm_params, batch)
        return traced.lower(), traced.jaxpr.jaxpr
