"""The whole step on simulated devices: losses, gradients, bank and metrics are one device's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def equal_on(*meshes: str) -> None:
    """In a process of its own: the device count is fixed when JAX starts."""
    flags = (
        "--xla_force_host_platform_device_count=8 --xla_llvm_disable_expensive_passes=true "
        "--xla_backend_optimization_level=0 "
        "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    )
    result = subprocess.run(
        [sys.executable, "-m", "tests.multidevice.step_on_meshes", *meshes],
        capture_output=True,
        text=True,
        # A collective blocks the thread it runs on: as many threads as cores would all wait.
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "NPROC": "32"},
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout.count("equal") == len(meshes)


@pytest.mark.slow
def test_eight_devices_equal_one():
    equal_on("8,1,1", "2,2,2")


@pytest.mark.slow
def test_other_meshes_equal_one():
    equal_on("2,4,1", "2,1,1", "1,2,1", "1,1,2")
