"""Which of the machine's cores a process computes on."""

from __future__ import annotations

import contextlib
import os


def available() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def limit_to(cores: int | list[int], gpu: int | None = None) -> None:
    """This process uses so many cores (or these) and that GPU alone; call before JAX computes."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
        return
    if isinstance(cores, list):
        if hasattr(os, "sched_setaffinity"):
            with contextlib.suppress(OSError):  # a container may fix them
                os.sched_setaffinity(0, cores)
        cores = len(cores)
    os.environ["NPROC"] = str(max(cores, 1))  # of XLA's thread pool
