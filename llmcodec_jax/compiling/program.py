"""A run's train step, compiled for hardware that is not there: memory, exchanges and work."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import importlib.util
import logging
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax.compiling.report import roofline
from llmcodec_jax.errors import UsageError
from llmcodec_jax.hardware import chips, costs
from llmcodec_jax.lm import decoder
from llmcodec_jax.lm.config import LMConfig
from llmcodec_jax.training import sharding
from llmcodec_jax.training.config import RunConfig
from llmcodec_jax.training.method import Method
from llmcodec_jax.training.step import train_step
from llmcodec_jax.training.tracing import abstract_state, compile_step
from llmcodec_jax.types import Batch

logger = logging.getLogger(__name__)


class TopologyError(UsageError):
    """A topology that cannot be compiled for; the message says why."""


@dataclasses.dataclass(frozen=True)
class Target:
    """What to compile for."""

    name: str
    devices: list
    chip: chips.Chip
    estimated: bool  # compiled by another compiler than the target's


def target(name: str) -> Target:
    """ "v5e:4x4", "gpu:80GB", "gpu:8x80GB" or "cpu:8" -> Target. Raises TopologyError."""
    kind, _, shape = name.partition(":")
    if kind in ("gpu", "cpu"):
        count, memory = 1, 0.0
        number, _, size = shape.rpartition("x") if kind == "gpu" else (shape, "", "")
        try:
            count = int(number or 1)
            memory = float(size.removesuffix("GB")) if kind == "gpu" else 0.0
        except ValueError:
            raise TopologyError(f"{name!r}: write gpu:80GB, gpu:8x80GB or cpu:8") from None
        if count > len(jax.devices("cpu")):
            raise TopologyError(
                f"{name!r} needs XLA_FLAGS=--xla_force_host_platform_device_count={count}, set "
                "before JAX starts; the command line does so"
            )
        model = chips.CHIPS["h200" if memory > 100 else "h100"]
        memory_gb = memory * chips.GIB / chips.GB if memory else float("inf")
        chip = dataclasses.replace(model, name=kind, memory_gb=memory_gb)
        return Target(name, jax.devices("cpu")[:count], chip, True)
    if kind not in chips.CHIPS or not shape:
        raise TopologyError(f"{name!r}: known are v4, v5e, v5p, v6e, tpu7x with a shape, gpu, cpu")
    from jax.experimental import topologies

    options = {"chip_config_name": "megacore"} if kind == "v4" else {}
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except RuntimeError as error:  # of the plug-in, and where there is none
        if not _has_libtpu():
            missing = f"libtpu is missing (no TPU is needed): pip install '{libtpu_of_jax()}'"
            raise TopologyError(f"{missing}, or set TPU_LIBRARY_PATH to its .so") from error
        raise TopologyError(f"libtpu does not know {name!r}: {error}") from error
    return Target(name, list(described.devices), chips.CHIPS[kind], False)


def libtpu_of_jax() -> str:
    """The release that this JAX goes with, as a requirement: others' programs it may not read."""
    asked = importlib.metadata.requires("jax") or []
    return next((r.partition(";")[0].strip() for r in asked if r.startswith("libtpu")), "libtpu")


def program_text(compiled: Any) -> str:
    """What the compiler made, as text. Raises TopologyError where JAX cannot read it."""
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        raise TopologyError(
            f"jax {jax.__version__} cannot read this libtpu's programs; it goes with "
            f"{libtpu_of_jax()} ({str(error).splitlines()[0]})"
        ) from error


def _has_libtpu() -> bool:
    named = os.environ.get("TPU_LIBRARY_PATH")
    return Path(named).is_file() if named else importlib.util.find_spec("libtpu") is not None


def abstract_lm(config: RunConfig) -> tuple[LMConfig | None, dict | None]:
    """config.lm -> (architecture, shapes of its weights), (None, None) without an LM."""
    if not config.lm.path:
        return None, None
    lm = config.lm.architecture
    key = jax.eval_shape(lambda: jax.random.key(0))
    return lm, jax.eval_shape(
        functools.partial(decoder.init_params, lm, dtype=jnp.dtype(config.lm.dtype)), key
    )


def abstract_batch(config: RunConfig, clips: int) -> Batch:
    """Shapes of one batch of `clips` clips."""
    leaf, taught = jax.ShapeDtypeStruct, bool(config.distillation.teacher)
    frames = config.clip_samples // config.codec.hop
    return Batch(
        wav=leaf((clips, config.clip_samples), jnp.float32),
        wav_length=leaf((clips,), jnp.int32),
        text_ids=leaf((clips, config.data.max_text), jnp.int32),
        text_length=leaf((clips,), jnp.int32),
        domain=leaf((clips,), jnp.int32),
        example_id=leaf((clips,), jnp.uint32),
        features=leaf((clips, frames, config.distillation.width), jnp.float32) if taught else None,
    )


@dataclasses.dataclass
class Program:
    """A step ready to compile: everything abstract."""

    method: Method
    mesh: jax.sharding.Mesh
    state: object
    lm_params: dict | None
    batch: Batch
    clips: int


def prepare(config: RunConfig, devices) -> Program:
    """config and devices -> Program, from shapes alone.

    A batch that the devices cannot share evenly is rounded up to the next multiple that they
    can, four clips on each at least, with a warning.
    """
    mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh), devices=devices)
    lm_config, lm = abstract_lm(config)
    method = Method.from_config(config, lm_config)
    clips, shards = config.data.batch_size, sharding.batch_shards(mesh) * config.optim.accumulate
    if clips % shards:
        rounded = max(4 * shards, -(-clips // shards) * shards)
        logger.warning("%d clips do not divide over %d: compiling for %d", clips, shards, rounded)
        clips = rounded
    state = abstract_state(method, lm, config.seed, mesh)
    if lm is not None:
        lm = sharding.placed(lm, sharding.shardings(lm, mesh, sharding.LM_RULES))
    batch = abstract_batch(config, clips)
    batch = sharding.placed(batch, jax.tree.map(lambda _: sharding.batch_sharding(mesh), batch))
    return Program(method, mesh, state, lm, batch, clips)


def per_device(tree) -> int:
    """Bytes of an abstract, placed tree on one device."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape), dtype=np.int64)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def one_devices_work(config: RunConfig, program: Program, phase) -> costs.Work:
    """Work of one device: the step on its own clips, the LM's products over tensor devices."""
    clips = program.clips // sharding.batch_shards(program.mesh)
    bare = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), program.state)
    lm = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), program.lm_params)
    step = functools.partial(train_step, method=program.method, phase=phase)
    return costs.traced_work(step, bare, lm, abstract_batch(config, clips))


def memory_table(program: Program, compiled) -> dict:
    """Bytes on one device, by kind."""
    state, stats = program.state, compiled.memory_analysis()
    trained = {"params": state.params, "discriminator": state.discriminator}
    kinds = {
        "frozen_lm": per_device(program.lm_params),
        "parameters": per_device(trained),
        "optimiser": per_device((state.opt_state, state.discriminator_opt_state)),
        "bank": per_device(state.bank),
        "batch": per_device(program.batch),
    }
    kinds["other_arguments"] = max(stats.argument_size_in_bytes - sum(kinds.values()), 0)
    kinds["outputs_not_donated"] = stats.output_size_in_bytes - stats.alias_size_in_bytes
    gradients = min(per_device(trained), stats.temp_size_in_bytes)
    kinds["gradients"] = gradients
    kinds["activations_and_temporaries"] = stats.temp_size_in_bytes - gradients
    kinds["program"] = stats.generated_code_size_in_bytes
    return kinds | {"total": sum(kinds.values())}


def check(config: RunConfig, where: Target, phases: str = "last") -> dict:
    """Compiles and reports; "fits" says whether every phase does."""
    program = prepare(config, where.devices)
    wanted = program.method.schedule.phases()
    wanted = wanted[-1:] if phases == "last" else wanted
    reports = [_phase_report(config, program, where, start) for start, _ in wanted]
    return {
        "topology": where.name,
        "devices": len(where.devices),
        "mesh": dict(program.mesh.shape),
        "global_batch": program.clips,
        "clip_seconds": config.data.clip_seconds,
        "capacity_bytes": where.chip.memory_gb * chips.GB / where.chip.devices,
        "computed_not_measured": True,
        "estimated_by_cpu_compiler": where.estimated,
        "fits": all(r["fits"] for r in reports),
        "phases": reports,
    }


def _phase_report(config: RunConfig, program: Program, where: Target, start: int) -> dict:
    """The step that needs most memory, with the R1 penalty; the work of an ordinary one."""
    ordinary = program.method.phase(start)._replace(penalty=False)
    phase = program.method.penalised(ordinary)
    logger.info("compiling %s for %s", phase, where.name)
    begun = time.perf_counter()
    capacity = where.chip.memory_gb * chips.GB / where.chip.devices
    step = compile_step(
        program.method,
        phase,
        program.mesh,
        program.state,
        program.lm_params,
        program.batch,
        capacity,
    )
    compiled = step.call
    seconds = time.perf_counter() - begun
    memory = memory_table(program, compiled)
    found = costs.collectives(program_text(compiled), len(where.devices))
    work = one_devices_work(config, program, ordinary)
    state_bytes = memory["parameters"] + memory["optimiser"]
    times = roofline(work, sum(c.sent for c in found if not c.rare), state_bytes, where.chip)
    audio = program.clips * config.data.clip_seconds
    frames = program.clips * program.batch.wav.shape[1] / program.method.codec.hop
    slowest = max(times["overlapped"], 1e-12)
    return {
        "phase": phase._asdict(),
        "compile_seconds": round(seconds, 1),
        "fits": memory["total"] <= capacity,
        "lm_recomputes": step.recomputes,
        "memory_bytes_per_device": memory,
        "flops_per_device": work.flops,
        "flops_by_compiler_loops_once": (compiled.cost_analysis() or {}).get("flops", 0.0),
        "bytes_per_device": work.bytes + 2 * state_bytes,
        "seconds": times,
        "audio_tokens_per_second": frames / slowest,
        "audio_seconds_per_second": audio / slowest,
        "collectives": [dataclasses.asdict(c) | {"sent": c.sent} for c in found],
    }
