"""The corpus engine of a cluster: Ray Data, decoding on CPUs and an actor a device.

Ray holds decoding back when the actors are behind, and runs again what a lost process or node
was at. The driver sees one small row a shard.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator
from typing import Any

from llmcodec_jax.corpus import shard
from llmcodec_jax.corpus.local import Maker
from llmcodec_jax.corpus.plan import Task, open_planned
from llmcodec_jax.corpus.shard import Engine, Part
from llmcodec_jax.errors import UserError
from llmcodec_jax.ops.cores import limit_to

logger = logging.getLogger(__name__)

WINDOW = 2000  # shards a Ray dataset: what the driver holds does not grow with the corpus
ACTOR_CPUS, READER_CPUS = 0.5, 0.25  # so that readers find room beside an actor on every core


class RayError(UserError):
    """Ray is missing, or the cluster cannot do the work."""


def open_engine(address: str | None) -> Engine:
    """Joins the cluster at `address` ("auto": the one this machine belongs to), or starts one."""
    try:
        import ray
    except ImportError as error:
        raise RayError(
            f"--engine ray needs Ray: pip install 'llmcodec-jax[ray]' ({error})"
        ) from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        try:
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.WARNING,
                **({} if address else {"include_dashboard": False}),
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RayError(f"no Ray cluster at {address}: {error}") from error
    return run


def run(task: Task, shards: list[int], workers: int | None) -> Iterator[Part]:
    """Makes `shards`; see `tokenise.Engine`. Raises UserErrors of the workers, RayError."""
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    for first in range(0, len(shards), WINDOW):
        window = shards[first : first + WINDOW]
        try:
            for row in _dataset(task, window, workers).iter_rows():
                yield pickle.loads(row["part"])
        except ray.exceptions.RayTaskError as error:
            cause: Any = error.cause
            while cause is not None and not isinstance(cause, UserError):
                cause = cause.__cause__ or getattr(cause, "cause", None)
            raise cause or RayError(f"a worker failed: {error}") from error
        except ray.exceptions.RayError as error:
            raise RayError(f"the cluster gave up: {error}; the same command goes on") from error


def _dataset(task: Task, shards: list[int], workers: int | None):
    import ray

    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    cpus = resources.get("CPU", 1)
    count = min(workers or gpus or max(int(cpus), 1), len(shards))
    cores = max(int(cpus) // count, 1)
    rows = ray.data.from_items(
        [{"shard": number} for number in shards], override_num_blocks=len(shards)
    )
    room = max(int((cpus - ACTOR_CPUS * count) / READER_CPUS), 1)
    readers = ray.data.ActorPoolStrategy(min_size=min(count, room), max_size=room)
    read = rows.map(_Reader, fn_constructor_args=(task,), compute=readers, num_cpus=READER_CPUS)
    return read.map(
        _Coder,
        fn_constructor_args=(task, cores),
        compute=ray.data.ActorPoolStrategy(size=count),
        num_cpus=ACTOR_CPUS,
        **({"num_gpus": gpus / count} if gpus else {}),
    )


class _Reader:
    """A Ray actor that reads and resamples: tasks would start a process, and JAX, for most shards.

    Ray ends idle workers after a second.
    """

    def __init__(self, task: Task):
        self._plan = task.plan
        self._source = open_planned(task.plan)  # may list a bucket

    def __call__(self, row: dict) -> dict:
        """A shard's number -> its clips; what does not fit is left to the coder."""
        plan, number = self._plan, int(row["shard"])
        clips, seconds = [], 0.0
        for clip in shard.read_clips(self._source, plan.indices(number), plan.sample_rate):
            clips.append(clip)
            seconds += 0.0 if clip.wav is None else len(clip.wav) / plan.sample_rate
            if seconds > shard.HELD:
                break
        return {"shard": number, "clips": pickle.dumps(clips, protocol=5)}


class _Coder:
    """A Ray actor: the compiled codec of one device."""

    def __init__(self, task: Task, cores: int):
        limit_to(cores)
        self._maker = Maker(task)

    def __call__(self, row: dict) -> dict:
        maker, number = self._maker, int(row["shard"])
        plan = maker.task.plan
        clips = {clip.index: clip for clip in pickle.loads(row["clips"])}
        rest = [index for index in plan.indices(number) if index not in clips]

        def all_clips() -> Iterator[shard.Clip]:
            yield from clips.values()
            yield from shard.read_clips(maker.source, rest, plan.sample_rate)

        part = shard.make_shard(
            maker.codec, maker.source, maker.task.output, plan, number, all_clips()
        )
        return {"part": pickle.dumps(part)}
