"""Where what is being traced will run."""

from __future__ import annotations

import jax


def on_cpu() -> bool:
    """Whether what is traced now will run on a CPU.

    The mesh in use decides, which `compile_check` makes of devices that are not here; without one,
    the default device.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (jax.default_backend() if device is None else device.platform) == "cpu"


def turns_at_once(count: int) -> int:
    """How many turns of a loop over micro-batches to write out one after the other.

    All of them on CPUs: XLA has fast convolutions there outside of loops and conditionals alone
    (docs/measurements.md). Elsewhere one, which is the smaller program.
    """
    return count if on_cpu() else 1
