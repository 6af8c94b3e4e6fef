"""One whole training run: config, mesh, LM, data, state, loop."""

from __future__ import annotations

import logging
from pathlib import Path

import jax

from llmcodec_jax.codec import store
from llmcodec_jax.data.embedded import lm_path
from llmcodec_jax.data.pipeline import eval_batches, make_loader
from llmcodec_jax.data.prefetch import prefetch
from llmcodec_jax.lm.load import load_lm
from llmcodec_jax.lm.weights import digest
from llmcodec_jax.training import journal, loop, report, sharding
from llmcodec_jax.training.checkpoint import Checkpoints
from llmcodec_jax.training.method import Method
from llmcodec_jax.training.state import init_state

logger = logging.getLogger(__name__)


def load_language_model(config, mesh):
    """config.lm -> (LMConfig, sharded params, tokenizer, digest), Nones without an LM."""
    if not config.lm.path:
        return None, None, None, ""
    path = lm_path(config.lm.path)
    lm_config, params, tokenizer = load_lm(
        path, config.lm.dtype, lambda shapes: sharding.shardings(shapes, mesh, sharding.LM_RULES)
    )
    for name, value in config.lm.config.items():
        if getattr(lm_config, name) != value:
            held = getattr(lm_config, name)
            logger.warning("lm.config.%s is %r but %s holds %r, used", name, value, path, held)
    return lm_config, params, tokenizer, digest(params)


def open_data(config, method: Method, tokenizer):
    """-> (endless loader of this process's rows, fixed held-out batches, prefetch depth)."""
    data = config.data.to_dict()
    clip = round(data.pop("clip_seconds") * method.codec.sample_rate)
    prefetched, workers, threads, buffer = (
        data.pop(name) for name in ("prefetch", "workers", "threads", "buffer")
    )
    heldout = {"count": config.log.eval_clips, "batch_size": data.pop("eval_batch_size")}
    common = dict(
        sample_rate=method.codec.sample_rate,
        clip_samples=clip - clip % method.codec.hop,
        hop=method.codec.hop,
        text_tokenizer=tokenizer,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    sources, eval_sources = data.pop("sources"), data.pop("eval_sources")
    batch_size = data.pop("batch_size")
    loader = make_loader(
        sources,
        batch_size=batch_size,
        workers=workers,
        threads=threads,
        buffer=buffer,
        split="all" if eval_sources else "train",
        **common,
        **data,
    )
    batches = eval_batches(
        eval_sources or sources,
        split="all" if eval_sources else "eval",
        **heldout,
        **common | {"process_index": 0, "process_count": 1},  # every process holds them whole
        **data,
    )
    return loader, batches, prefetched


def start_state(config, method: Method, lm_params, mesh):
    """Shapes -> shardings -> (jitted initialiser on the devices, placed shapes to restore into)."""
    abstract = jax.eval_shape(lambda lm: init_state(method, lm, config.seed), lm_params)
    placed = sharding.shardings(abstract, mesh, sharding.STATE_RULES)
    build = jax.jit(lambda lm: init_state(method, lm, config.seed), out_shardings=placed)
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, placed
    )
    return build, abstract


def import_codec(path: str, method: Method, state):
    """Puts a codec's weights into a fresh state. Raises ValueError if the architecture differs."""
    _, variables = store.load(path, expect=method.codec)
    put = lambda new, old: jax.device_put(new, old.sharding)  # noqa: E731
    params = state.params | {"codec": jax.tree.map(put, variables["params"], state.params["codec"])}
    stats = jax.tree.map(put, variables["batch_stats"], state.batch_stats)
    return state.replace(params=params, batch_stats=stats)


def run(config, workdir: Path, *, restart: bool = False) -> bool:
    """One whole training run, from wherever `workdir` stands -> whether it reached its end."""
    mesh = sharding.make_mesh(**config.mesh)
    lm_config, lm_params, tokenizer, lm_digest = load_language_model(config, mesh)
    method = Method.from_config(config, lm_config)
    loader, heldout, depth = open_data(config, method, tokenizer)

    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        report.timetable(method).savefig(workdir / "schedule.png", dpi=110, bbox_inches="tight")

    build, abstract = start_state(config, method, lm_params, mesh)
    checkpoints = Checkpoints(config.log.checkpoint_dir or workdir, config.log.keep)
    restored = checkpoints.restore(abstract, config.to_dict(), lm_digest, restart=restart)
    if restored:
        state, position = restored
        loader.restore(position)
    else:
        state = build(lm_params)
        if config.init:
            state = import_codec(config.init, method, state)
    with loader, prefetch(loader, lambda b: sharding.put_batch(b, mesh), depth) as batches:
        book = journal.Journal(
            workdir,
            config.total_steps,
            int(state.step),
            tensorboard=config.log.tensorboard,
            wandb=config.log.wandb,
        )
        finished = loop.train(
            loop.Run(
                method=method,
                mesh=mesh,
                workdir=workdir,
                log=config.log,
                config=config.to_dict(),
                lm_params=lm_params,
                lm_digest=lm_digest,
                heldout=heldout,
                checkpoints=checkpoints,
                journal=book,
            ),
            state,
            batches,
        )
        book.close()
    checkpoints.close()
    if jax.process_index() == 0 and finished:
        page = report.write(workdir, method, loader.skipped())
        logger.info("report: %s", page)
    return finished
