"""The train step as it is compiled: by the loop for arrays, by `compile_check` for shapes."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from llmcodec_jax.training import sharding
from llmcodec_jax.training.method import Method
from llmcodec_jax.training.schedules import Phase
from llmcodec_jax.training.state import init_state
from llmcodec_jax.training.step import train_step

logger = logging.getLogger(__name__)


def abstract_state(method: Method, lm_params, seed: int, mesh: jax.sharding.Mesh):
    """Shapes, dtypes and shardings of the state; nothing is computed. `lm_params` may be shapes."""
    shapes = jax.eval_shape(lambda lm: init_state(method, lm, seed), lm_params)
    return sharding.placed(shapes, sharding.shardings(shapes, mesh, sharding.STATE_RULES))


def lower_step(
    method, phase: Phase, mesh: jax.sharding.Mesh, state, lm_params, batch, step=train_step
):
    """The step of one phase -> (lowered, ready to compile; its jaxpr). Arrays or shapes alike.

    `step`: another function of `train_step`'s contract, for `method` of another kind.
    """
    step = functools.partial(step, method=method, phase=phase)
    kept = jax.tree.map(lambda x: x.sharding, state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(kept, sharding.replicated(mesh)))
    with jax.set_mesh(mesh):
        traced = jitted.trace(state, lm_params, batch)
        return traced.lower(), traced.jaxpr.jaxpr


class Compiled(NamedTuple):
    """A step ready to run."""

    call: Any  # (state, lm_params, batch) -> (state, report)
    jaxpr: Any
    recomputes: bool  # the LM's products, in the backward pass


def compile_step(
    method: Any,
    phase: Phase,
    mesh: jax.sharding.Mesh,
    state,
    lm_params,
    batch,
    capacity: float,
    step: Callable = train_step,
) -> Compiled:
    """The compiled step of one phase.

    `lm.remat` "auto" recomputes the LM's products only where the step else needs more than
    `capacity` bytes on a device; then it is compiled twice. `step`: see `lower_step`.
    """
    choices = (False,)
    if phase.lm and method.lm is not None:
        choices = {"never": (False,), "always": (True,), "auto": (False, True)}[method.lm.remat]
    for recomputes in choices[:-1]:
        found = _compile(method, phase, recomputes, mesh, state, lm_params, batch, capacity, step)
        if found is not None:
            return found
        logger.info("the LM's products are recomputed: kept, they would not fit (lm.remat=auto)")
    last = _compile(method, phase, choices[-1], mesh, state, lm_params, batch, math.inf, step)
    assert last is not None  # nothing limits the last choice
    return last


def _compile(method, phase, recomputes, mesh, state, lm_params, batch, capacity: float, step):
    """Compiled, or None where it needs more than a finite `capacity`."""
    if method.lm is not None:
        remat = "always" if recomputes else "never"
        method = dataclasses.replace(method, lm=dataclasses.replace(method.lm, remat=remat))
    lowered, jaxpr = lower_step(method, phase, mesh, state, lm_params, batch, step)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:  # compilers refuse what no device of theirs holds
        if capacity == math.inf or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None
    if capacity < math.inf and needed_bytes(compiled) > capacity:
        return None
    return Compiled(compiled, jaxpr, recomputes)


def needed_bytes(compiled) -> float:
    """Memory that a compiled program takes on one device."""
    stats = compiled.memory_analysis()
    kept = stats.output_size_in_bytes - stats.alias_size_in_bytes
    code = stats.generated_code_size_in_bytes
    return stats.argument_size_in_bytes + kept + stats.temp_size_in_bytes + code


def device_capacity(mesh: jax.sharding.Mesh) -> float:
    """Bytes of the smallest device of all processes; infinite where none says (CPUs)."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in mesh.local_devices]
    smallest = min((float(limit) for limit in limits if limit), default=math.inf)
    if jax.process_count() > 1:  # all have to compile the same program
        smallest = float(np.min(multihost_utils.process_allgather(np.float32(smallest))))
    return smallest
