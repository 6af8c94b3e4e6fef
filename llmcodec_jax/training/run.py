"""One whole training run: config, mesh, LM, data, state, loop."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import jax
from ml_collections import ConfigDict

from llmcodec_jax.codec import store
from llmcodec_jax.data.batches import Batches
from llmcodec_jax.data.embedded import lm_path
from llmcodec_jax.data.examples import ExampleMaker
from llmcodec_jax.data.pipeline import HeldOut, Loader, eval_batches
from llmcodec_jax.data.prefetch import prefetch
from llmcodec_jax.data.sources import open_mixture
from llmcodec_jax.errors import UsageError, UserError
from llmcodec_jax.lm.load import load_lm
from llmcodec_jax.lm.weights import digest
from llmcodec_jax.ops import files
from llmcodec_jax.training import distributed, journal, loop, report, sharding
from llmcodec_jax.training.checkpoint import CONFIG_NAME, Checkpoints
from llmcodec_jax.training.codec_task import CODEC
from llmcodec_jax.training.config import RunConfig, read_config
from llmcodec_jax.training.interrupt import Interrupted
from llmcodec_jax.training.lock import FolderLock
from llmcodec_jax.training.method import Method
from llmcodec_jax.training.state import init_state
from llmcodec_jax.training.teacher import open_teacher, with_features
from llmcodec_jax.training.tracing import abstract_state
from llmcodec_jax.training.warm_start import put_codec, read_codec

T = TypeVar("T")

logger = logging.getLogger(__name__)


def load_language_model(config: RunConfig, mesh):
    """config.lm -> (LMConfig, sharded params, tokenizer), Nones without an LM."""
    if not config.lm.path:
        return None, None, None
    path = lm_path(config.lm.path)
    lm_config, params, tokenizer = load_lm(
        path, config.lm.dtype, lambda shapes: sharding.shardings(shapes, mesh, sharding.LM_RULES)
    )
    for name, value in config.source["lm"]["config"].items() if config.lm.config else ():
        if getattr(lm_config, name) != value:
            held = getattr(lm_config, name)
            logger.warning("lm.config.%s is %r but %s holds %r, used", name, value, path, held)
    return lm_config, params, tokenizer


def open_data(config: RunConfig, tokenizer) -> tuple[Loader, HeldOut]:
    """-> (endless loader of this process's rows, fixed held-out batches)."""
    data, codec = config.data, config.codec
    maker = ExampleMaker(
        sample_rate=codec.sample_rate,
        clip_samples=config.clip_samples,
        hop=codec.hop,
        text_tokenizer=tokenizer,
        max_text=data.max_text,
        text_policy=data.text_policy,
        min_seconds=data.min_seconds,
        silence_peak=data.silence_peak,
    )

    def open_part(sources, split: str):
        return open_mixture(
            sources,
            "all" if data.eval_sources else split,
            alignments=data.alignments,
            eval_fraction=data.eval_fraction,
            eval_max=data.eval_max,
            by=data.split_by,
            temperature=data.temperature if data.mixture == "hours" else None,
        )

    changed = dataclasses.replace(maker, augment=data.augment if data.augment.any() else None)
    batches = Batches(
        open_part(data.sources, "train"),
        changed,
        batch_size=data.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        by_shard=data.shards_by_host,
    )
    heldout = eval_batches(  # every process holds them whole
        open_part(data.eval_sources or data.sources, "eval"),
        maker,
        count=config.log.eval_clips,
        batch_size=data.eval_batch_size,
        seed=config.seed,
    )
    loader = Loader(batches, workers=data.workers, threads=data.threads, buffer=data.buffer)
    return loader, heldout


def start_state(config: RunConfig, method: Method, lm_params, mesh):
    """-> (jitted initialiser on the devices, placed shapes to restore into)."""
    abstract = abstract_state(method, lm_params, config.seed, mesh)
    where = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(lambda lm: init_state(method, lm, config.seed), out_shardings=where), abstract


def check_inputs(config: RunConfig) -> None:
    """What can be told before anything is loaded. Raises UsageError, FileNotFoundError."""
    if config.total_steps < 1:
        raise UsageError(f"total_steps must be at least 1, got {config.total_steps}")
    counts = ("every", "eval_every", "checkpoint_every", "keep", "eval_clips")
    for name in (*counts, "peer_timeout", "step_timeout", "pause_timeout"):
        if getattr(config.log, name) < 1:
            raise UsageError(f"log.{name} must be at least 1, got {getattr(config.log, name)}")
    remote = config.log.checkpoint_dir.partition("://")[0]
    if remote not in ("gs", config.log.checkpoint_dir):
        raise UsageError(
            f"log.checkpoint_dir: checkpoints go to folders and gs://BUCKET/FOLDER, not "
            f"{remote}://; mount the bucket (docs/data.md) and give the folder"
        )
    if config.data.mixture not in ("weights", "hours"):
        raise UsageError(f"data.mixture {config.data.mixture!r} is not one of weights, hours")
    if config.init:
        store.locate(config.init)


def check_batch(config: RunConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises UsageError where devices or micro-batches cannot share the clips evenly."""
    clips, shards = config.data.batch_size, sharding.batch_shards(mesh)
    for parts, what in (
        (shards, "devices (mesh.data * mesh.fsdp)"),
        (config.optim.accumulate, "micro-batches (optim.accumulate)"),
    ):
        if clips % parts:
            raise UsageError(f"data.batch_size={clips} does not divide over {parts} {what}")


def run(file: ConfigDict, workdir: Path, *, restart: bool = False) -> bool:
    """One whole training run, from wherever `workdir` stands -> whether it reached its end.

    `restart` begins at step 0 and keeps what is there aside. Raises UserErrors alone for what a
    person can mend; where several processes run, all of them end when one does.
    """
    config = read_config(file)
    check_inputs(config)
    with at_work(workdir, config.log.checkpoint_dir) as interrupted:
        return _run(config, workdir, interrupted, restart)


@contextlib.contextmanager
def at_work(workdir: Path, checkpoints: str) -> Iterator[Interrupted]:
    """Holds a run's folders and notes signals; `checkpoints` is their folder, "" for `workdir`."""
    distributed.start_watchdog(distributed.PAUSE_SECONDS)
    folders = dict.fromkeys([str(workdir), checkpoints or str(workdir)])
    with contextlib.ExitStack() as stack:
        interrupted = stack.enter_context(Interrupted())
        # The first process holds the folders for all.
        locks = [FolderLock(folder) for folder in folders if jax.process_index() == 0]
        together(lambda: [stack.enter_context(lock) for lock in locks])
        yield interrupted


def together(action: Callable[[], T]) -> T:
    """`distributed.together` for everything that a person can mend."""
    return distributed.together(action, UsageError, UserError, OSError)


def _run(config: RunConfig, workdir: Path, interrupted: Interrupted, restart: bool) -> bool:
    mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh))
    check_batch(config, mesh)
    lm_config, lm_params, tokenizer = together(lambda: load_language_model(config, mesh))
    lm_digest = digest(lm_params) if lm_params is not None else ""
    method = Method.from_config(config, lm_config)
    loader, heldout = together(lambda: open_data(config, tokenizer))

    build, abstract = start_state(config, method, lm_params, mesh)
    checkpoints = Checkpoints(config.log.checkpoint_dir or workdir, config.log.keep)
    restored = checkpoints.restore(abstract, config.source, lm_digest, restart=restart)
    if restored:
        state, position = restored
        # A run of bad steps is counted anew: nobody goes on from inside one.
        state = state.replace(bad_streak=0 * state.bad_streak)
        loader.restore(position)
    else:
        state = build(lm_params)
        if config.init:
            state = put_codec(together(lambda: read_codec(config.init, method)), state)
    together(lambda: describe_run(workdir, config, method))
    hear = lambda batch: batch  # noqa: E731
    if config.distillation.teacher:
        hear = with_features(together(lambda: open_teacher(config.distillation)), method.codec)
    put = lambda batch: sharding.put_batch(hear(batch), mesh)  # noqa: E731
    with (
        loader,
        prefetch(loader, put, config.data.prefetch) as batches,
        together(lambda: open_journal(workdir, config, int(state.step))) as writing,
    ):
        finished = loop.train(
            loop.Run(
                task=CODEC,
                method=method,
                mesh=mesh,
                workdir=workdir,
                log=config.log,
                config=config,
                lm_params=lm_params,
                lm_digest=lm_digest,
                heldout=heldout,
                checkpoints=checkpoints,
                journal=writing,
                interrupted=interrupted,
            ),
            state,
            batches,
        )
    if jax.process_index() == 0 and finished:
        page = report.write(workdir, method, loader.skipped(), heldout.spoken)
        logger.info("report: %s", page)
    return finished


def open_journal(workdir: Path, config: RunConfig, start: int) -> journal.Journal:
    """The run's rows from step `start` on."""
    return journal.Journal(
        workdir,
        config.total_steps,
        start,
        tensorboard=config.log.tensorboard,
        wandb=config.log.wandb,
    )


def describe_run(workdir: Path, config: RunConfig, method: Method) -> None:
    """Writes the config, which says where the checkpoints are, and the timetable's picture."""
    if jax.process_index() == 0:
        with files.replacing(workdir / CONFIG_NAME) as partial:
            partial.write_text(json.dumps(config.source, indent=1) + "\n")
        report.timetable(method).savefig(workdir / "schedule.png", dpi=110, bbox_inches="tight")
