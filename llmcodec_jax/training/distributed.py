"""Several processes as one run: joining, stopping together, never waiting for ever."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from llmcodec_jax.training import sharding

T = TypeVar("T")

logger = logging.getLogger(__name__)

PEER_SECONDS = "LLMCODEC_PEER_TIMEOUT"
"""Environment variable: a peer that is not heard of for so many seconds ends every process."""

STEP_SECONDS = "LLMCODEC_STEP_TIMEOUT"
"""Environment variable: a process whose step takes longer than so many seconds ends."""

PAUSE_SECONDS = "LLMCODEC_PAUSE_TIMEOUT"
"""The same for what happens between steps: compiling, evaluating, restoring, saving."""

_limits = {PEER_SECONDS: 100, STEP_SECONDS: 600, PAUSE_SECONDS: 3600}


def set_limits(peer: int, step: int, pause: int) -> None:
    """The run's own limits in seconds (`log.peer_timeout` and others), for this process."""
    _limits.update({PEER_SECONDS: peer, STEP_SECONDS: step, PAUSE_SECONDS: pause})


def limit(variable: str, environment=os.environ) -> float:
    """Seconds that hold: the environment's, else the run's."""
    return float(environment.get(variable, _limits[variable]))


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
    asks Slurm, Kubernetes or the TPU's metadata. A peer that is not heard of in PEER_SECONDS ends
    every process with an error.
    """
    if not called_for(environment):
        return
    given: dict[str, Any] = {}
    if "JAX_NUM_PROCESSES" in environment:
        given["num_processes"] = int(environment["JAX_NUM_PROCESSES"])
    if "JAX_PROCESS_ID" in environment:
        given["process_id"] = int(environment["JAX_PROCESS_ID"])
    jax.distributed.initialize(
        coordinator_address=environment.get("JAX_COORDINATOR_ADDRESS"),
        heartbeat_timeout_seconds=int(limit(PEER_SECONDS, environment)),
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


def together(action: Callable[[], T], *errors: type[Exception]) -> T:
    """Runs `action` on every process, and raises on all of them where one of `errors` came up.

    Nobody waits in a collective for a process that has given up. All processes must call it.
    """
    result: Any = None  # read only where there was no problem
    problem = None
    try:
        result = action()
    except errors as error:
        problem = error
    if jax.process_count() == 1:
        if problem:
            raise problem
        return result
    kind = next((i for i, e in enumerate(errors, 1) if isinstance(problem, e)), 0)
    text = str(problem or "").encode()[:1000]
    told = multihost_utils.process_allgather(
        np.frombuffer(bytes([kind]) + text.ljust(1000, b"\0"), np.uint8)
    )
    if problem:
        raise problem
    for process, (number, *text) in enumerate(np.asarray(told).tolist()):
        if number:
            message = bytes(text).rstrip(b"\0").decode(errors="replace")
            raise errors[number - 1](f"process {process}: {message}")
    return result


def start_watchdog(variable: str = STEP_SECONDS, environment=os.environ) -> None:
    """Ends this process, with the stacks of its threads on stderr, unless called again in time.

    A peer that hangs but lives keeps its heartbeat; this is what bounds the wait for it. Does
    nothing in a run of one process.
    """
    if jax.process_count() > 1:
        seconds = limit(variable, environment)
        stderr = sys.__stderr__ or sys.stderr
        faulthandler.dump_traceback_later(seconds, exit=True, file=stderr)


def stop_watchdog() -> None:
    """Ends the watch."""
    faulthandler.cancel_dump_traceback_later()


def ignore_signals() -> None:
    """For the way out: a scheduler that ends the others when one has left must not change the
    status that says "saved"."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def end_with_launcher(environment=os.environ) -> None:
    """Sends this process a SIGTERM once the launch script that started it is gone.

    LLMCODEC_LAUNCHER holds the script's process id. A script that was killed can pass nothing on.
    """
    if "LLMCODEC_LAUNCHER" not in environment:
        return
    launcher = int(environment["LLMCODEC_LAUNCHER"])

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()
