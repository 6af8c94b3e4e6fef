"""Compiles a run's train step for hardware that is not there, and says what it would need.

    python -m llmcodec_jax.compile_check --config configs/base.py --topology v5e:4x4

Needs no weights and no accelerator. Exits with 1 if the step does not fit. Topologies:

    v5e:4x4, v5p:2x2x1, ...   TPU (v4, v5e, v5p, v6e, tpu7x) and its shape in chips; needs libtpu
    gpu:80GB, gpu:8x80GB      GPUs by memory, compiled for CPUs: activations are an estimate
    cpu:8                     simulated devices

libtpu is taken from the environment or, better, from $TPU_LIBRARY_PATH (one in the environment
makes every other JAX program look for a TPU first):
    pip install --target ~/libtpu 'libtpu==0.0.42.*'    # jax 0.10.2's; a later JAX names its own
    export TPU_LIBRARY_PATH=~/libtpu/libtpu/libtpu.so
--config.section.field=value as in training.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # this is not a cloud machine: do not ask it
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # compiling takes no chip: no lock
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from absl import flags

from llmcodec_jax.compiling.program import check, target
from llmcodec_jax.compiling.report import describe, scaling_table
from llmcodec_jax.errors import answer_errors
from llmcodec_jax.training import command_line
from llmcodec_jax.training.config import read_config

logger = logging.getLogger("llmcodec_jax.compile_check")  # also when run as __main__


TOPOLOGY = flags.DEFINE_string("topology", None, "v5e:4x4, v5p:2x2x1, gpu:80GB, cpu:8, ...")
OUTPUT = flags.DEFINE_string("output", None, "Where to write the report as JSON")
PHASES = flags.DEFINE_enum("phases", "last", ["last", "all"], "Which of the run's phases")
EFFORT = flags.DEFINE_enum(
    "effort",
    "quick",
    ["quick", "full"],
    "quick: TPU code is generated without its costliest optimisations; memory comes out within "
    "a few per cent, the exchanges are the same. full: as training compiles",
)
SCALING = flags.DEFINE_bool("scaling", False, "Also print a table of larger slices")
flags.adopt_module_key_flags(command_line)
flags.mark_flag_as_required("config")


@answer_errors
def main(_) -> int:
    command_line.setup_logging()
    if not TOPOLOGY.value:
        logger.error("--topology is needed, such as --topology v5e:4x4")
        return 2
    kind, _, shape = TOPOLOGY.value.partition(":")
    if kind in ("cpu", "gpu"):
        count = shape if kind == "cpu" else (shape.rpartition("x")[0] or 1)
        flag = f"--xla_force_host_platform_device_count={count}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    elif EFFORT.value == "quick":
        jax.config.update("jax_optimization_level", "O0")
    config = read_config(command_line.CONFIG.value)
    report = check(config, target(TOPOLOGY.value), PHASES.value)
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(json.dumps(report, indent=1) + "\n")
    print(describe(report))
    if SCALING.value:
        print(f"\n{scaling_table(report)}")
    return 0 if report["fits"] else 1


if __name__ == "__main__":
    command_line.start(main)
