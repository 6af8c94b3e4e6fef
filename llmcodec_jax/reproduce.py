"""The study: base codec -> its LM -> every variant from that base -> one evaluation -> one page.

    python -m llmcodec_jax.reproduce --config configs/miniature.py --data DIR --workdir W

DIR's sub-folders are the sources: speech in LibriSpeech's layout or plain, and folders whose
names start with music or sound. The same command on the same --workdir goes on where it stopped;
whole stages are skipped. Any field of the config can be given as --config.section.field=value.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from absl import flags

from llmcodec_jax import train
from llmcodec_jax.data.cache import keep_compilations
from llmcodec_jax.errors import UNFINISHED, answer_errors
from llmcodec_jax.study import jobs, results, stages
from llmcodec_jax.study.config import read_study, scale
from llmcodec_jax.study.jobs import InterruptedRunError, Row
from llmcodec_jax.training import command_line

logger = logging.getLogger("llmcodec_jax.reproduce")

DATA = flags.DEFINE_string("data", None, "Folder whose sub-folders hold speech, music, sounds")
BUDGET = flags.DEFINE_float(
    "budget",
    1.0,
    "Multiplies every step count. Below 0.5 only control and ftp_sa are run, with one seed each; "
    "0.05 is a smoke test of a quarter of an hour on two cores",
    lower_bound=1e-4,
)
JOBS = flags.DEFINE_integer(
    "jobs",
    1,
    "Rows trained and evaluated at a time, each on its share of the cores: runs as small as these "
    "leave most of many cores idle. For CPUs; leave it at 1 on an accelerator",
    lower_bound=1,
)
flags.adopt_module_key_flags(train)  # --workdir and --cache
flags.mark_flag_as_required("data")


def run(config, data: Path, workdir: Path, budget: float, at_a_time: int = 1) -> dict:
    """The whole study, from wherever `workdir` stands -> the summary that report.json holds.

    at_a_time: rows. Raises InterruptedRunError once what was at work has saved.
    """
    scale(config, budget)
    study = read_study(config)
    material = stages.gather(study, data)
    test = stages.held_out(workdir / "heldout", material, study.evaluation)
    base = workdir / "base"
    stages.train_run(study.base, base, material.sources)
    coded = stages.Coded(base, material)
    wanted = {study.teacher_of(n) for n, v in study.variants.items() if v.seeds} - {""}
    begins = {
        name: stages.train_teacher(study.teachers[name], workdir / "teachers" / name, coded)
        for name in study.teachers
        if name in wanted
    }
    teachers = {name: study.teacher_of(name) for name in study.variants}
    stages.evaluate(coded, test, study.evaluation, base=True)
    rows = stages.Rows(study, workdir, material, test, begins)
    # Seed by seed, so that a study cut short compares all variants on the seeds it has.
    every = [Row(name, seed) for seed in range(study.seeds) for name in study.rows(seed)]
    done = list(filter(rows.is_whole, every))
    for row in done:
        rows.finish(row)  # nothing is left but the check of what it was made from
    todo = [row for row in every if row not in done]

    def write() -> dict:
        folders = rows.folders(sorted(done, key=every.index))
        said = about(data, budget, folders)
        return results.write(workdir, folders, teachers, test.clips, said)

    summary = write()
    for finished in jobs.finished(rows.finish, todo, at_a_time, workdir / "logs"):
        done.append(finished)
        summary = write()
    return summary


def about(data: Path, budget: float, folders: dict) -> str:
    """The page's first line."""
    return f"{sum(map(len, folders.values()))} codecs on {data.name}, budget {budget:g}."


@answer_errors
def main(_) -> int:
    command_line.setup_logging()
    keep_compilations()
    workdir = Path(train.WORKDIR.value or "runs/study")
    if train.CACHE.value:
        os.environ["LLMCODEC_CACHE"] = train.CACHE.value
    try:
        summary = run(
            command_line.CONFIG.value, Path(DATA.value), workdir, BUDGET.value, JOBS.value
        )
    except InterruptedRunError as stopped:
        logger.info("%s was interrupted and saved; the same command goes on", stopped)
        return UNFINISHED
    print(results.markdown(summary))
    print(workdir / "report.html")
    return 0


if __name__ == "__main__":
    command_line.start(main)
