"""The training loop: draw, step, evaluate, save; stops cleanly when asked to."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from llmcodec_jax.errors import UserError
from llmcodec_jax.hardware import chips, costs
from llmcodec_jax.training import distributed
from llmcodec_jax.training.checkpoint import Checkpoints
from llmcodec_jax.training.compile_times import CompileTimes
from llmcodec_jax.training.config import LogConfig
from llmcodec_jax.training.interrupt import Interrupted
from llmcodec_jax.training.journal import Journal
from llmcodec_jax.training.resume import CheckpointError
from llmcodec_jax.training.schedules import Phase, Schedule
from llmcodec_jax.training.tracing import compile_step, device_capacity

logger = logging.getLogger(__name__)


class NonFiniteError(UserError, RuntimeError):
    """Too many steps in a row had a NaN or infinite loss or gradient."""


class Trained(Protocol):
    """What the loop asks of a method: a codec's (`method.Method`) or a speech LM's."""

    @property
    def schedule(self) -> Schedule: ...

    @property
    def max_bad_steps(self) -> int: ...

    def phase(self, step: int) -> Phase:
        """The static phase of a step; each distinct one is compiled once."""


class Config(Protocol):
    """What the loop asks of a run's config."""

    @property
    def source(self) -> dict[str, Any]: ...

    @property
    def audio_per_step(self) -> float:
        """Seconds of audio in a batch."""


class Task(NamedTuple):
    """What is trained, as functions; the loop around them is one."""

    step: Callable  # (state, lm_params, batch, *, method, phase) -> (state, report): `train_step`
    evaluate: Callable[[Run, Any, int], float]  # writes held-out rows -> what the best has least of
    export: Callable[[Run, Any], None]  # writes what others load of the run
    shown: tuple[str, ...]  # metrics beside the progress bar


@dataclasses.dataclass
class Run:
    """What the loop needs besides the state and the batches."""

    task: Task
    method: Trained
    mesh: jax.sharding.Mesh
    workdir: Path
    log: LogConfig
    config: Config
    lm_params: dict | None
    lm_digest: str
    heldout: list
    checkpoints: Checkpoints
    journal: Journal
    interrupted: Interrupted


class Steps:
    """The compiled train step of each phase: at most three, and as many with R1 (schedules.py)."""

    def __init__(self, run: Run):
        self._run, self._compiled = run, {}
        self.flops = 0.0  # of the current phase's step, over all devices

    def __call__(self, phase, state, batch):
        """-> (state, report, whether it was compiled just now)."""
        fresh = phase not in self._compiled
        if fresh:
            with CompileTimes(self._run.config.source, phase):
                self._compiled[phase] = self._compile(phase, state, batch)
            distributed.start_watchdog(distributed.STEP_SECONDS)
        compiled, self.flops = self._compiled[phase]
        with jax.transfer_guard("disallow"):  # all is on the devices already: keep it so
            state, report = compiled(state, self._run.lm_params, batch)
        return state, report, fresh

    def has(self, phase) -> bool:
        """Whether the phase's step is compiled already."""
        return phase in self._compiled

    def _compile(self, phase, state, batch):
        run = self._run
        capacity = device_capacity(run.mesh)
        step = compile_step(
            run.method, phase, run.mesh, state, run.lm_params, batch, capacity, run.task.step
        )
        return step.call, costs.work(step.jaxpr).flops


def train(run: Run, state, batches) -> bool:
    """Runs from `state.step` to the end -> whether it got there (or was asked to stop).

    Whatever ends it, the checkpoint in flight is committed first. Raises NonFiniteError naming
    the losses when `max_bad_steps` steps in a row were skipped.
    """
    try:
        return _train(run, state, batches)
    except BaseException:
        try:
            run.checkpoints.close()
        except CheckpointError as error:  # the first failure is the one to tell
            logger.error("%s", error)
        raise
    finally:
        distributed.stop_watchdog()


def _train(run: Run, state, batches) -> bool:
    total, log, interrupted = run.method.schedule.total_steps, run.log, run.interrupted
    start = step = int(state.step)
    steps, clock, vote = Steps(run), Clock(run, start), distributed.StopVote(run.mesh)
    reports, owed = Reports(run, steps, clock), False
    while True:
        distributed.start_watchdog(distributed.PAUSE_SECONDS)
        finished, stopping = step >= total, vote(bool(interrupted.name))
        profile(run, state, step)
        evaluating = finished or step % log.eval_every == 0
        saving = step > start and (finished or stopping or owed or step % log.checkpoint_every == 0)
        if evaluating or saving:
            clock.stop()
            reports.finish()  # rows before the checkpoint that makes them past
        mel = run.task.evaluate(run, state, step) if evaluating else None
        if saving:
            owed = bool(reports.bad_streak) and not finished  # its parameters may be the cause
            if not owed:
                save(run, state, step, batches.state(), mel)
        if evaluating or saving:
            clock.pause(step)
        if finished or stopping:
            break
        batch, phase = next(batches), run.method.phase(step)
        if steps.has(phase):
            distributed.start_watchdog(distributed.STEP_SECONDS)
        else:
            clock.stop()
        state, report, fresh = steps(phase, state, batch)
        reports.finish()
        reports.pending = (step, report)
        step += 1
        if fresh:
            clock.pause(step)
    interrupted.saving = True
    distributed.start_watchdog(distributed.PAUSE_SECONDS)
    run.checkpoints.close()
    if not finished:
        why = interrupted.name or "another process was interrupted"
        kept = "nothing new to save" if step == start else f"saved step {step}"
        if owed:
            kept = f"step {step} is one of a run of bad steps and was not saved"
        logger.info("%s: %s; the same command resumes", why, kept)
    return finished


def save(run: Run, state, step: int, position: dict, mel: float | None) -> None:
    """Starts a checkpoint, and writes what is trained alone."""
    run.checkpoints.save(step, state, position, run.config.source, run.lm_digest, mel)
    run.task.export(run, state)


class Reports:
    """Reads each step's report one step late, so that the device never waits."""

    def __init__(self, run: Run, steps: Steps, clock: Clock):
        self._run, self._steps, self._clock = run, steps, clock
        self.pending: tuple[int, dict] | None = None
        self.bad_streak = 0  # steps in a row that were not finite, as last read

    def finish(self) -> None:
        """Reads and writes what is pending. Raises NonFiniteError after too many bad steps."""
        if self.pending is None:
            return
        (step, report), self.pending = self.pending, None
        self.bad_streak = check_finite(self._run.method, step, report)
        if step % self._run.log.every == 0 or step + 1 == self._run.method.schedule.total_steps:
            write_row(self._run, step, report, self._clock.rates(step + 1, self._steps.flops))


def profile(run: Run, state, step: int) -> None:
    """Traces steps [first, last) of `log.profile` into the run folder, for TensorBoard."""
    first, last = run.log.profile
    if first < last and step in (first, last):
        jax.block_until_ready(state)  # the window holds exactly its own steps
        if step == first:
            jax.profiler.start_trace(str(run.workdir / "profile"))
        else:
            jax.profiler.stop_trace()


class Clock:
    """Speed since the last row, evaluation and compilation left out where they can be."""

    def __init__(self, run: Run, step: int):
        self._audio = run.config.audio_per_step
        self._peak = chips.peak_flops(run.mesh.devices.flatten())
        self._begun = time.perf_counter()
        self._in_steps = 0.0  # seconds
        self._stopped = True
        self.pause(step)

    def stop(self) -> None:
        """What follows is no step: compiling, evaluating, saving."""
        if not self._stopped:
            self._in_steps += time.perf_counter() - self._counted
        self._stopped = True

    def pause(self, step: int) -> None:
        """Steps follow from here on."""
        self._step, self._time = step, time.perf_counter()
        if self._stopped:
            self._counted, self._stopped = self._time, False

    def goodput(self) -> float:
        """Share of the time since the loop began that went into steps."""
        now = time.perf_counter()
        running = 0.0 if self._stopped else now - self._counted
        return (self._in_steps + running) / max(now - self._begun, 1e-9)

    def rates(self, step: int, flops: float) -> dict:
        """steps/s, seconds of audio/s, FLOP/s and, where the chip's peak is known, the share of
        it that the matrix products use (MFU), since the last call."""
        elapsed = max(time.perf_counter() - self._time, 1e-9)
        per_second = (step - self._step) / elapsed
        self.pause(step)
        return {
            "speed/steps_per_second": per_second,
            "speed/audio_seconds_per_second": per_second * self._audio,
            "speed/tflops": per_second * flops / 1e12,
            "speed/goodput": self.goodput(),
        } | ({"speed/mfu": per_second * flops / self._peak} if self._peak else {})


def check_finite(method: Trained, step: int, report: dict) -> int:
    """Waits for one scalar of a finished step -> how many in a row were bad by then.

    Raises NonFiniteError after too many.
    """
    streak = int(report["bad_streak"])
    if not streak:
        return 0
    values = {name: np.asarray(value) for name, value in report.items()}
    bad = sorted(name for name, value in values.items() if not np.isfinite(value).all())
    logger.warning("step %d skipped, not finite: %s", step, ", ".join(bad))
    if streak >= method.max_bad_steps:
        raise NonFiniteError(
            f"{streak} steps in a row were not finite, the last at step {step}: {', '.join(bad)}. "
            "The last checkpoint is from before them; lower the learning rate or look at the data, "
            "and the same command goes on from it."
        )
    return streak


def write_row(run: Run, step: int, report: dict, rates: dict) -> None:
    report = jax.device_get(report) | rates
    run.journal.row(step, report)
    run.journal.progress(step, {n: report[n] for n in run.task.shown if n in report})
