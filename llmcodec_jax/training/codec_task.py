"""What the loop does when it trains a codec: its step, its held-out evaluation, its folder."""

from __future__ import annotations

import functools
import logging
from typing import Any

import jax

from llmcodec_jax.codec.store import save_codec_folder
from llmcodec_jax.pages import plots
from llmcodec_jax.training import heldout, sharding
from llmcodec_jax.training.loop import Run, Task
from llmcodec_jax.training.method import Method
from llmcodec_jax.training.step import eval_step, train_step

logger = logging.getLogger(__name__)


def evaluate_heldout(run: Run, state, step: int) -> float:
    """Evaluates on the held-out clips; writes the row, pictures and sound; returns mel."""
    method: Any = run.method  # a `Method`, of which the loop asks less
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
    for level, counts in enumerate(histogram):
        run.journal.histogram(f"eval/codes_{level}", counts, step)
    if jax.process_index() == 0:
        heldout.keep_sound(run.workdir / "heldout" / f"{step:07d}", pairs, method.codec.sample_rate)
        for index, (reference, estimate) in enumerate(pairs):
            run.journal.audio(f"eval/codec_{index}", estimate, method.codec.sample_rate, step)
            image = plots.mel_pair(reference, estimate, method.codec.sample_rate)
            run.journal.image(f"eval/mel_{index}", image, step)
    logger.info(
        "held out at step %d: %s",
        step,
        "  ".join(f"{k.removeprefix('eval/')} {float(v):.3g}" for k, v in scalars.items()),
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
        method: Any = run.method
        save_codec_folder(run.workdir / "codec", method.codec, variables)


CODEC = Task(
    train_step,
    evaluate_heldout,
    save_codec,
    ("loss/mel", "loss/ftp/1", "grad_norm/encoder", "speed/audio_seconds_per_second"),
)
