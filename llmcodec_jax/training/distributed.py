"""Several processes as one run: joining, stopping together, never waiting for ever."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from llmcodec_jax.training import sharding

logger = logging.getLogger(__name__)

SILENCE_SECONDS = 1800
"""A process whose step (its compilation included) takes longer ends itself, see `watch`."""


def called_for(environment=os.environ) -> bool:
    """Whether the environment describes several processes: one of ours (launch/*), Slurm's,
    or a TPU slice of several hosts."""
    return bool(
        environment.get("JAX_COORDINATOR_ADDRESS")
        or environment.get("LLMCODEC_DISTRIBUTED")
        or ("SLURM_STEP_ID" in environment and int(environment.get("SLURM_NTASKS", 1)) > 1)
        or "," in environment.get("TPU_WORKER_HOSTNAMES", "")
    )


def join(environment=os.environ) -> None:
    """Joins the other processes, if the environment calls for it; call before using devices.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say who is who; without them JAX
    asks Slurm, Kubernetes or the TPU's metadata. A peer that is not heard of for
    LLMCODEC_PEER_TIMEOUT seconds (100) ends every process with an error.
    """
    if not called_for(environment):
        return
    given = {}
    if "JAX_NUM_PROCESSES" in environment:
        given["num_processes"] = int(environment["JAX_NUM_PROCESSES"])
    if "JAX_PROCESS_ID" in environment:
        given["process_id"] = int(environment["JAX_PROCESS_ID"])
    jax.distributed.initialize(
        coordinator_address=environment.get("JAX_COORDINATOR_ADDRESS"),
        heartbeat_timeout_seconds=int(environment.get("LLMCODEC_PEER_TIMEOUT", 100)),
        **given,
    )
    logger.info(
        "process %d of %d, %d of %d devices",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        jax.device_count(),
    )


class StopVote:
    """One answer for all processes to "does anyone want to stop?", without waiting for it.

    Each call hands in this process's wish and returns what the call before found, so that the
    devices never stand still for it. A single process is answered at once.
    """

    def __init__(self, mesh: jax.sharding.Mesh):
        self._alone = jax.process_count() == 1
        self._wishes = NamedSharding(mesh, P(mesh.axis_names))
        self._any = jax.jit(jnp.max, out_shardings=sharding.replicated(mesh))
        self._found = None

    def __call__(self, wish: bool) -> bool:
        if self._alone:
            return wish
        answer = self._found is not None and bool(self._found)
        own = np.full(jax.local_device_count(), wish, np.int32)
        self._found = self._any(jax.make_array_from_process_local_data(self._wishes, own))
        return answer


def watch(seconds: int = SILENCE_SECONDS) -> None:
    """Ends this process, with the stacks of its threads on stderr, unless called again in time.

    A peer that hangs but lives keeps its heartbeat; this is what bounds the wait for it. Does
    nothing in a run of one process.
    """
    if jax.process_count() > 1:
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)


def rest() -> None:
    """Ends the `watch`."""
    faulthandler.cancel_dump_traceback_later()
