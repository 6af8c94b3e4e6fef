"""Trains a codec: python -m llmcodec_jax.train --config configs/quickstart.py --workdir runs/first

The same command on the same --workdir resumes. A run that was interrupted and has saved ends with
status 75. Any field of the config can be given as
--config.section.field=value; configs/base.py documents them all.
"""

from __future__ import annotations

import os
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from llmcodec_jax.data.cache import keep_compilations
from llmcodec_jax.errors import UNFINISHED, answer_errors
from llmcodec_jax.training import command_line, distributed
from llmcodec_jax.training.run import run

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder (default: runs/NAME_OF_THE_CONFIG)")
CACHE = flags.DEFINE_string(
    "cache", None, "Where fetched speech and models are kept (default: ~/.cache/llmcodec_jax)"
)
RESTART = flags.DEFINE_bool(
    "restart", False, "Begin again at step 0; what is in --workdir is kept beside the new run"
)
flags.adopt_module_key_flags(command_line)
flags.mark_flag_as_required("config")


@answer_errors
def main(_) -> int:
    command_line.setup_logging()
    config = command_line.CONFIG.value
    path = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = Path(WORKDIR.value or Path("runs") / Path(path).stem)
    if CACHE.value:
        os.environ["LLMCODEC_CACHE"] = CACHE.value
    log = config.log
    distributed.set_limits(log.peer_timeout, log.step_timeout, log.pause_timeout)
    distributed.join()
    keep_compilations()
    distributed.end_with_launcher()
    if run(config, workdir, restart=RESTART.value):
        return 0
    distributed.ignore_signals()
    return UNFINISHED


if __name__ == "__main__":
    command_line.start(main)
