"""What a training step costs here, part by part, for any config.

    python -m llmcodec_jax.benchmarks step --config configs/quickstart.py [--steps 3]

Random weights and sounds at the config's sizes; nothing is fetched but an LM whose architecture the
config does not state. Parts are differences between steps that have them and steps that do not.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from llmcodec_jax.data.embedded import lm_path
from llmcodec_jax.errors import answer_errors
from llmcodec_jax.hardware import costs
from llmcodec_jax.lm.decoder import init_params
from llmcodec_jax.lm.load import load_lm
from llmcodec_jax.training import command_line
from llmcodec_jax.training.config import RunConfig, read_config
from llmcodec_jax.training.method import Method
from llmcodec_jax.training.schedules import Phase
from llmcodec_jax.training.state import init_state
from llmcodec_jax.training.step import train_step
from llmcodec_jax.types import Batch

STEPS = flags.DEFINE_integer("steps", 3, "Steps to average over", lower_bound=1)


class Cost(NamedTuple):
    """Of one step."""

    cpu: float  # processor seconds, all cores together
    wall: float  # seconds
    flops: float = 0.0  # of matrix products and convolutions

    def minus(self, other: Cost) -> Cost:
        return Cost(*(max(a - b, 0.0) for a, b in zip(self, other, strict=True)))

    def over(self, steps: float) -> Cost:
        return Cost(*(value / steps for value in self))


def a_batch(config: RunConfig, vocabulary: int) -> Batch:
    """Noise under a slow envelope, every clip whole and with text."""
    rng, clips = np.random.default_rng(0), config.data.batch_size
    shape = (clips, config.clip_samples)
    envelope = 0.1 * np.sin(np.arange(shape[1]) / config.codec.sample_rate * 9) ** 2
    whole = functools.partial(jnp.full, (clips,), dtype=jnp.int32)
    return Batch(
        wav=jnp.asarray(envelope * rng.standard_normal(shape), jnp.float32),
        wav_length=whole(shape[1]),
        text_ids=jnp.asarray(rng.integers(0, vocabulary, (clips, config.data.max_text)), jnp.int32),
        text_length=whole(config.data.max_text),
        domain=whole(0),
        example_id=jnp.arange(clips, dtype=jnp.uint32),
    )


class Bench:
    """A config's step with random weights, ready to be timed in any phase."""

    def __init__(self, config: RunConfig):
        lm_config, self.lm = None, None
        if config.lm.path and config.lm.config:
            lm_config = config.lm.config
            dtype = jnp.dtype(config.lm.dtype)
            self.lm = init_params(lm_config, jax.random.key(1), dtype)
        elif config.lm.path:
            lm_config, self.lm, _ = load_lm(lm_path(config.lm.path), config.lm.dtype)
        self.method = Method.from_config(config, lm_config)
        self.batch = jax.device_put(a_batch(config, lm_config.vocab_size if lm_config else 2))
        build = jax.jit(lambda lm: init_state(self.method, lm, config.seed))
        self.state = build(self.lm)

    def time(self, phase: Phase, steps: int) -> Cost:
        """A step of this phase, measured after a warm-up."""
        print(f"compiling and measuring {phase}", file=sys.stderr, flush=True)
        step = functools.partial(train_step, method=self.method, phase=phase)
        compiled = jax.jit(step).lower(self.state, self.lm, self.batch).compile()
        flops = costs.traced_work(step, self.state, self.lm, self.batch).flops
        jax.block_until_ready(compiled(self.state, self.lm, self.batch))  # pages, caches
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(steps):
            jax.block_until_ready(compiled(self.state, self.lm, self.batch))
        elapsed = Cost(time.process_time() - cpu, time.perf_counter() - wall)
        return elapsed.over(steps)._replace(flops=flops)


def measure(config: RunConfig, steps: int) -> dict[str, Cost]:
    """Cost of each part of an average step and of "all" of it."""
    bench = Bench(dataclasses.replace(config, training=dataclasses.replace(
        config.training, revive_every=0)))  # fmt: skip
    method = bench.method
    parts: dict[str, Cost] = {}
    total = parts["codec and acoustic losses"] = bench.time(Phase(True, False, False), steps)
    if method.game.enabled:
        players = Phase(True, True, False)
        with_players = bench.time(players, steps)
        parts["discriminators"] = with_players.minus(total)
        if method.penalised(players).penalty:
            every = method.game.r1_every
            due = bench.time(method.penalised(players), steps).minus(with_players)
            parts[f"R1, 1 of {every} steps"] = due.over(every)
        total = with_players
    if method.lm is not None:
        whole = bench.time(Phase(True, method.game.enabled, True), steps)
        parts["language model and its losses"] = whole.minus(total)
    parts["all"] = Cost(*map(sum, zip(*parts.values(), strict=True)))
    return parts


def describe(parts: dict[str, Cost], clips: int) -> str:
    """The table that the command prints."""
    every = parts["all"]
    lines = [f"{'part':34} {'CPU s':>8} {'share':>6} {'wall s':>8} {'GFLOP':>8}"]
    lines += [
        f"{name:34} {c.cpu:8.2f} {c.cpu / max(every.cpu, 1e-9):6.0%} {c.wall:8.2f}"
        f" {c.flops / 1e9:8.1f}"
        for name, c in parts.items()
    ]
    return "\n".join([*lines, f"{clips} clips a step; {every.cpu / clips:.2f} CPU s a clip"])


@answer_errors
def main(arguments: list[str] | None = None) -> int:
    """Measures and prints."""
    command_line.parse_sub_flags(sys.modules[__name__], "benchmarks step", arguments or [])
    config = read_config(command_line.CONFIG.value)
    print(describe(measure(config, STEPS.value), config.data.batch_size))
    return 0
