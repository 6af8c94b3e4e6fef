"""Rows of a study side by side: a process for each, on cores of its own.

Runs as small as the study's do not fill a machine of many cores one by one.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from llmcodec_jax.data.cache import keep_compilations
from llmcodec_jax.errors import UNFINISHED, UserError, answer_errors
from llmcodec_jax.ops.cores import available, limit_to
from llmcodec_jax.training import command_line
from llmcodec_jax.training.interrupt import Interrupted

logger = logging.getLogger(__name__)

GLANCE = 0.5  # seconds between two looks for a signal


class InterruptedRunError(Exception):
    """A training run was asked to stop and has saved; the study stops too."""


class RowError(UserError):
    """Rows that failed; the others were finished."""


class Row(NamedTuple):
    """One run of a variant."""

    name: str
    seed: int

    def __str__(self) -> str:
        return f"{self.name}-{self.seed}"


class _Job(NamedTuple):
    process: Any
    row: Row
    cores: list[int]


def finished(work: Callable[[Row], None], rows: list[Row], jobs: int, logs: Path) -> Iterator[Row]:
    """Calls `work` for every row, `jobs` at a time, and yields each row once it is done.

    One job is a plain loop. With more, `work` is pickled into a process for each row, which says
    what it has to say in logs/NAME-SEED.log. Raises InterruptedRunError after a signal, once the
    rows at work have saved; RowError, once all others are done, if any has failed.
    """
    if jobs == 1:
        for row in rows:
            work(row)
            yield row
        return
    logs.mkdir(parents=True, exist_ok=True)
    waiting, failed = list(rows), []
    free = [available()[slot::jobs] for slot in range(min(jobs, len(available())))]
    running: list[_Job] = []
    with Interrupted() as asked, tqdm(total=len(rows), unit="row", desc="rows") as bar:
        try:
            while running or (waiting and not asked.name):
                while waiting and free and not asked.name:
                    running.append(_start(work, waiting.pop(0), free.pop(), logs))
                bar.set_postfix_str(", ".join(str(job.row) for job in running))
                for job in _ended(running):
                    running.remove(job)
                    free.append(job.cores)
                    if job.process.exitcode == 0:
                        bar.update()
                        yield job.row
                    elif not asked.name:
                        failed.append(job.row)
                        logger.error("%s failed, see %s", job.row, logs / f"{job.row}.log")
                if asked.name:
                    break
        finally:  # a signal, or an error here: they save and end
            for job in running:
                job.process.terminate()
            for job in running:
                job.process.join()
    if asked.name:
        raise InterruptedRunError("the rows at work")
    if failed:
        raise RowError("; ".join(f"{row}: {_last_line(logs / f'{row}.log')}" for row in failed))


def _ended(running: list[_Job]) -> list[_Job]:
    """Jobs that have ended within a glance."""
    multiprocessing.connection.wait([job.process.sentinel for job in running], GLANCE)
    return [job for job in running if not job.process.is_alive()]


def _start(work: Callable[[Row], None], row: Row, cores: list[int], logs: Path) -> _Job:
    """`work(row)` in a process of its own, which may start others."""
    context = multiprocessing.get_context("spawn")  # forking a process that runs JAX can hang
    process = context.Process(target=_work, args=(work, row, cores, logs / f"{row}.log"))
    process.start()
    return _Job(process, row, cores)


def _work(work: Callable[[Row], None], row: Row, cores: list[int], log: Path) -> None:
    """The process: exit status as of a command, output in `log`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(UNFINISHED))  # so that pools are closed
    with log.open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    limit_to(cores)
    command_line.setup_logging()
    keep_compilations()

    @answer_errors
    def one() -> int:
        try:
            work(row)
        except InterruptedRunError:
            return UNFINISHED
        return 0

    sys.exit(one())


def _last_line(log: Path) -> str:
    """The last thing that a row said, and where."""
    lines = log.read_text(errors="replace").replace("\r", "\n").strip().splitlines()
    return f"{lines[-1] if lines else 'ended'} ({log})"
