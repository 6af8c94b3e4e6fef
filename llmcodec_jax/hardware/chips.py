"""Published peaks of accelerators: what model FLOP utilisation and compile reports divide by."""

from __future__ import annotations

import dataclasses

GB = 10**9
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip. The bandwidth between chips is the sum over its links, in one direction: half of
    what vendors call bidirectional."""

    name: str
    tflops: float  # dense bfloat16, 10^12 per second
    memory_gb: float  # 10^9 bytes
    memory_gbs: float  # 10^9 bytes per second
    link_gbs: float  # 10^9 bytes per second to other chips
    kinds: tuple[str, ...] = ()  # how JAX's `device_kind` names it
    devices: int = 1  # JAX devices per chip


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275, 34.4, 1228, 300, ("TPU v4",)),
        Chip("v5e", 197, 17.2, 819, 200, ("TPU v5 lite", "TPU v5e")),
        Chip("v5p", 459, 102, 2765, 600, ("TPU v5", "TPU v5p")),
        Chip("v6e", 918, 34.4, 1640, 400, ("TPU v6 lite", "TPU v6e")),
        Chip("tpu7x", 2307, 206, 7380, 600, ("TPU7x",), devices=2),
        Chip("a100", 312, 85.9, 2039, 300, ("NVIDIA A100-SXM4-80GB",)),
        Chip("h100", 989, 85.9, 3350, 450, ("NVIDIA H100 80GB HBM3", "NVIDIA H100")),
        Chip("h200", 989, 151, 4800, 450, ("NVIDIA H200",)),
    )
}
"""By the name that topologies use; from the vendors' system architecture pages. TPU memory is GiB
there, bytes here. A slice without wraparound links has fewer than all links at its edges."""


def chip_of(device) -> Chip | None:
    """The chip behind a JAX device, None where it is not in the table (a CPU, say)."""
    kind = device.device_kind
    return next((chip for chip in CHIPS.values() if kind in chip.kinds), None)


def peak_flops(devices) -> float:
    """bfloat16 FLOP/s of all devices together; 0 where unknown."""
    chip = chip_of(devices[0])
    return len(devices) * chip.tflops * 1e12 / chip.devices if chip else 0.0
