"""The training loop: draw, step, look, save; stops cleanly when asked to."""

from __future__ import annotations

import dataclasses
import functools
import logging
import signal
import time
from pathlib import Path

import jax
import numpy as np

from llmcodec_jax.codec.store import save_codec_folder
from llmcodec_jax.errors import UserError
from llmcodec_jax.hardware import chips, costs
from llmcodec_jax.pages import plots
from llmcodec_jax.training import distributed, heldout, sharding
from llmcodec_jax.training.checkpoint import Checkpoints
from llmcodec_jax.training.journal import Journal, plain
from llmcodec_jax.training.method import Method
from llmcodec_jax.training.step import eval_step, train_step

logger = logging.getLogger(__name__)


class NonFiniteError(UserError, RuntimeError):
    """Too many steps in a row had a NaN or infinite loss or gradient."""


class Interrupted:
    """Notes SIGTERM and SIGINT, so that the loop can save and leave between two steps."""

    def __init__(self):
        self.name = ""

    def __enter__(self):
        self._old = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number, _):
        if self.name:  # asked twice: leave at once
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)


@dataclasses.dataclass
class Run:
    """What the loop needs besides the state and the batches."""

    method: Method
    mesh: jax.sharding.Mesh
    workdir: Path
    log: object  # configs/base.py `log`
    config: dict
    lm_params: dict | None
    lm_digest: str
    heldout: list
    checkpoints: Checkpoints
    journal: Journal


class Steps:
    """The compiled train step of each phase; at most three (schedules.py)."""

    def __init__(self, run: Run):
        self._run, self._compiled = run, {}
        self.flops = 0.0  # of the current phase's step, over all devices

    def __call__(self, phase, state, batch):
        """-> (state, report, whether it was compiled just now)."""
        fresh = phase not in self._compiled
        if fresh:
            logger.info("compiling for %s", phase)
            self._compiled[phase] = self._compile(phase, state, batch)
        compiled, self.flops = self._compiled[phase]
        with jax.transfer_guard("disallow"):  # all is on the devices already: keep it so
            state, report = compiled(state, self._run.lm_params, batch)
        return state, report, fresh

    def _compile(self, phase, state, batch):
        step = functools.partial(train_step, method=self._run.method, phase=phase)
        kept = jax.tree.map(lambda x: x.sharding, state)
        shardings = (kept, sharding.replicated(self._run.mesh))
        jitted = jax.jit(step, donate_argnums=0, out_shardings=shardings)
        with jax.set_mesh(self._run.mesh):
            traced = jitted.trace(state, self._run.lm_params, batch)
            return traced.lower().compile(), costs.work(traced.jaxpr.jaxpr).flops


def train(run: Run, state, batches) -> bool:
    """Runs from `state.step` to the end -> whether it got there (or was asked to stop).

    Raises NonFiniteError naming the losses when `max_bad_steps` steps in a row were skipped.
    """
    total, log = run.method.schedule.total_steps, run.log
    start = step = int(state.step)
    steps, pending, mel = Steps(run), None, float("inf")
    clock, stop = Clock(run, start), distributed.StopVote(run.mesh)

    def settle(pending):
        """Reads a finished step's report, one step late, so that the device never waits."""
        if pending:
            check_finite(run.method, *pending)
            if pending[0] % log.every == 0 or pending[0] + 1 == total:
                write_row(run, *pending, clock.rates(pending[0] + 1, steps.flops))

    with Interrupted() as interrupted:
        while True:
            distributed.start_watchdog()
            finished, stopping = step >= total, stop(bool(interrupted.name))
            profile(run, state, step)
            if finished or stopping or step % log.eval_every == 0:
                pending = settle(pending)
            if finished or step % log.eval_every == 0:
                mel = look(run, state, step)
                clock.pause(step)
            if step > start and (finished or stopping or step % log.checkpoint_every == 0):
                position = batches.state()
                run.checkpoints.save(step, state, position, run.config, run.lm_digest, mel)
                save_codec(run, state)
            if finished or stopping:
                break
            state, report, fresh = steps(run.method.phase(step), state, next(batches))
            settle(pending)
            pending = (step, report)
            step += 1
            if fresh:
                clock.pause(step)
    distributed.stop_watchdog()
    if stopping and not finished:
        why = interrupted.name or "another process was interrupted"
        logger.info("%s: saved step %d; the same command resumes", why, step)
    return finished


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
        batch = run.config["data"]["batch_size"]
        self._audio = batch * run.config["data"]["clip_seconds"]
        self._peak = chips.peak_flops(run.mesh.devices.flatten())
        self.pause(step)

    def pause(self, step: int):
        self._step, self._time = step, time.perf_counter()

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
        } | ({"speed/mfu": per_second * flops / self._peak} if self._peak else {})


def check_finite(method: Method, step: int, report: dict) -> None:
    """Waits for one scalar of a finished step. Raises NonFiniteError after too many bad ones."""
    streak = int(report["bad_streak"])
    if not streak:
        return
    values = {name: np.asarray(value) for name, value in report.items()}
    bad = sorted(name for name, value in values.items() if not np.isfinite(value).all())
    logger.warning("step %d skipped, not finite: %s", step, ", ".join(bad))
    if streak >= method.max_bad_steps:
        raise NonFiniteError(
            f"{streak} steps in a row were not finite, the last at step {step}: {', '.join(bad)}. "
            "Parameters are those before the first of them; lower the learning rate or look at "
            "the data, then resume from the last checkpoint."
        )


def write_row(run: Run, step: int, report: dict, rates: dict) -> None:
    report = jax.device_get(report) | rates
    run.journal.row(step, report)
    shown = ("loss/mel", "loss/ftp/1", "grad_norm/encoder", "speed/audio_seconds_per_second")
    run.journal.progress(step, {name: report[name] for name in shown if name in report})


def look(run: Run, state, step: int) -> float:
    """Evaluates on the held-out clips; writes the row, pictures and sound; returns mel."""
    method = run.method
    jitted = _eval_step(method, run.mesh)

    def evaluate_batch(batch):
        with jax.set_mesh(run.mesh):
            return jitted(state, run.lm_params, sharding.put_whole(batch, run.mesh))

    scalars, pairs, histogram = heldout.evaluate(
        evaluate_batch,
        run.heldout,
        method.codec.sample_rate,
        run.log.listen,
    )
    run.journal.row(step, scalars)
    run.journal.histogram("eval/codes", histogram, step)
    if jax.process_index() == 0:
        heldout.keep_sound(run.workdir / "heldout" / f"{step:07d}", pairs, method.codec.sample_rate)
        for index, (reference, estimate) in enumerate(pairs):
            run.journal.audio(f"eval/codec_{index}", estimate, method.codec.sample_rate, step)
            image = plots.mel_pair(reference, estimate, method.codec.sample_rate)
            run.journal.image(f"eval/mel_{index}", image, step)
    logger.info(
        "held out at step %d: %s",
        step,
        "  ".join(f"{k.removeprefix('eval/')} {plain(v):.3g}" for k, v in scalars.items()),
    )
    return scalars["eval/mel"]


@functools.lru_cache(maxsize=2)
def _eval_step(method: Method, mesh):
    step = functools.partial(eval_step, method=method)
    return jax.jit(step, out_shardings=sharding.replicated(mesh))


def save_codec(run: Run, state) -> None:
    """The codec alone, where `load_codec(workdir)` finds it."""
    variables = {"params": state.params["codec"], "batch_stats": state.batch_stats}
    variables = sharding.gather(variables, run.mesh)
    if jax.process_index() == 0:
        save_codec_folder(run.workdir / "codec", run.method.codec, variables)
