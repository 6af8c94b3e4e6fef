"""One whole run of a speech LM: config, codec, tokens, LM, state, loop."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from pathlib import Path

import jax
from ml_collections import ConfigDict

from llmcodec_jax.codec import inference
from llmcodec_jax.data.embedded import lm_path
from llmcodec_jax.data.prefetch import prefetch
from llmcodec_jax.errors import UsageError
from llmcodec_jax.lm.load import load_lm
from llmcodec_jax.lm.weights import digest
from llmcodec_jax.ops import files
from llmcodec_jax.speech_lm import config as configs
from llmcodec_jax.speech_lm import data, sources
from llmcodec_jax.speech_lm.batches import PackedBatch, PackedBatches, held_out
from llmcodec_jax.speech_lm.config import BYTES, SpeechConfig
from llmcodec_jax.speech_lm.method import SPEECH, SpeechMethod, init_state
from llmcodec_jax.speech_lm.template import Vocabulary
from llmcodec_jax.training import journal, loop, sharding
from llmcodec_jax.training.checkpoint import CONFIG_NAME, Checkpoints
from llmcodec_jax.training.interrupt import Interrupted
from llmcodec_jax.training.run import at_work, together

logger = logging.getLogger(__name__)

ABOUT_NAME = "speech_lm.json"
"""What `generate` needs of a run beside its checkpoint: whose tokens, which decoder."""

STATE_RULES = (
    *((rf"(.*/)?body/{pattern}", spec) for pattern, spec in sharding.LM_RULES[:-1]),
    (r".*", sharding.P()),
)
"""Where the state lives: a trained decoder's weights as a frozen one's, the rest everywhere."""


def run(file: ConfigDict, workdir: Path, *, restart: bool = False) -> bool:
    """From wherever `workdir` stands -> whether it reached its end; see `training.run.run`."""
    config = configs.read_config(file)
    check_inputs(config)
    with at_work(workdir, config.log.checkpoint_dir) as interrupted:
        return _run(config, workdir, interrupted, restart)


def check_inputs(config: SpeechConfig) -> None:
    """What can be told before anything is loaded. Raises UsageError."""
    if not config.data.sources:
        raise UsageError("data.sources names no source: librispeech:DIR, folder:DIR, tokens:PATH")
    if config.total_steps < 1:
        raise UsageError(f"total_steps must be at least 1, got {config.total_steps}")
    if config.task != "continuation" and config.data.length < 16:
        raise UsageError("data.length is the tokens of a row: hundreds")


def load_language_model(config: SpeechConfig, mesh):
    """config.lm -> (LMConfig, params, tokenizer), Nones from scratch."""
    if not config.lm.path:
        return None, None, None
    dtype = config.lm.dtype if config.lm.tune == "lora" else "float32"
    place = lambda shapes: sharding.shardings(shapes, mesh, sharding.LM_RULES)  # noqa: E731
    found, params, tokenizer = load_lm(lm_path(config.lm.path), dtype, place)
    if tokenizer is None and config.task != "continuation":
        raise UsageError(f"{config.lm.path}: has no tokenizer.json, and the task reads text")
    return found, params, tokenizer


def open_data(
    config: SpeechConfig, codec, tokenizer
) -> tuple[Vocabulary, PackedBatches, list[PackedBatch]]:
    """-> (ids there are, endless batches of this process's rows, held-out batches)."""
    levels = config.data.levels or codec.levels
    if not 1 <= levels <= codec.levels:
        raise UsageError(f"data.levels={levels}: {config.codec} has 1 to {codec.levels}")
    texts = BYTES if tokenizer is None else len(tokenizer)
    vocabulary = Vocabulary(codec.codebook_size, levels, texts, config.lm.reads)
    rate = codec.frame_rate * levels
    read = functools.partial(sources.read, codec=codec, levels=levels, speeds=config.data.speeds)
    clips = [clip for spec in config.data.sources for clip in read(spec)]
    clips = data.usable(clips, config, rate)
    training, kept = data.split(clips, config.data)
    make = data.Sequences(config, vocabulary, rate, data.reader(tokenizer), training)
    seconds = sum(len(clip.codes) for clip in training) / rate
    logger.info(
        "%d clips to train on (%.2f hours), %d held out", len(training), seconds / 3600, len(kept)
    )
    options = {"rows": config.data.batch_size, "length": config.data.length}
    batches = PackedBatches(
        training,
        make,
        **options,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    make_held = data.Sequences(config, vocabulary, rate, data.reader(tokenizer), clips)
    heldout = held_out(data.held_out_documents(make_held, kept), **options)
    if not heldout:
        raise UsageError("no clip is held out that fits a row: raise data.eval_fraction or length")
    share = config.data.batch_size // jax.process_count()
    mine = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
    return vocabulary, batches, [jax.tree.map(lambda x: x[mine], batch) for batch in heldout]


def describe_run(workdir: Path, config: SpeechConfig, method: SpeechMethod, codec) -> None:
    """Writes the config, and what `generate` needs to know."""
    if jax.process_index():
        return
    about = {
        "format": 1,
        "task": config.task,
        "codec": config.codec,
        "vocabulary": method.vocabulary._asdict(),
        "lm": dataclasses.asdict(method.lm.architecture),
        "codec_facts": codec.describe(),
    }
    for name, content in ((CONFIG_NAME, config.source), (ABOUT_NAME, about)):
        with files.replacing(workdir / name) as partial:
            partial.write_text(json.dumps(content, indent=1) + "\n")


def _run(config: SpeechConfig, workdir: Path, interrupted: Interrupted, restart: bool) -> bool:
    mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh))
    shards = sharding.batch_shards(mesh)
    if config.data.batch_size % shards:
        raise UsageError(f"data.batch_size={config.data.batch_size} does not divide over {shards}")
    codec = together(lambda: inference.load(config.codec))
    lm_config, lm_params, tokenizer = together(lambda: load_language_model(config, mesh))
    lm_digest = digest(lm_params) if lm_params is not None else ""
    vocabulary, loader, heldout = together(lambda: open_data(config, codec, tokenizer))
    method = SpeechMethod.from_config(config, vocabulary, lm_config)
    rate = codec.frame_rate * vocabulary.places
    per_step = config.data.batch_size * config.data.length / rate
    config = dataclasses.replace(config, audio_per_step=per_step)

    abstract = jax.eval_shape(lambda lm: init_state(method, lm, config.seed), lm_params)
    abstract = sharding.placed(abstract, sharding.shardings(abstract, mesh, STATE_RULES))
    where = jax.tree.map(lambda x: x.sharding, abstract)
    checkpoints = Checkpoints(
        config.log.checkpoint_dir or workdir, config.log.keep, configs.may_change
    )
    # Codes mean nothing to an LM of another codec: its digest stands for the run's identity too.
    identity = f"{lm_digest}codec:{codec.digest}"
    restored = checkpoints.restore(abstract, config.source, identity, restart=restart)
    if restored:
        state, position = restored
        state = state.replace(bad_streak=0 * state.bad_streak)
        loader.restore(position)
    else:
        build = jax.jit(lambda lm: init_state(method, lm, config.seed), out_shardings=where)
        state = build(lm_params)
    together(lambda: describe_run(workdir, config, method, codec))
    put = lambda batch: sharding.put_batch(batch, mesh)  # noqa: E731
    with (
        loader,
        prefetch(loader, put) as batches,
        together(lambda: open_journal(workdir, config, int(state.step))) as writing,
    ):
        return loop.train(
            loop.Run(
                task=SPEECH,
                method=method,
                mesh=mesh,
                workdir=workdir,
                log=config.log,
                config=config,
                lm_params=lm_params if method.frozen else None,
                lm_digest=identity,
                heldout=heldout,
                checkpoints=checkpoints,
                journal=writing,
                interrupted=interrupted,
            ),
            state,
            batches,
        )


def open_journal(workdir: Path, config: SpeechConfig, start: int) -> journal.Journal:
    """The run's rows from step `start` on."""
    options = {"tensorboard": config.log.tensorboard, "wandb": config.log.wandb}
    return journal.Journal(workdir, config.total_steps, start, **options)
