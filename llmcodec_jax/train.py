"""Trains a codec: python -m llmcodec_jax.train --config configs/quickstart.py --workdir runs/first

The same command on the same --workdir resumes. Any field of the config can be given as
--config.section.field=value; configs/base.py documents them all.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from llmcodec_jax import command_line
from llmcodec_jax.training import distributed
from llmcodec_jax.training.run import FAILURES, keep_compilations, run

logger = logging.getLogger("llmcodec_jax.train")  # also when run as __main__

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder (default: runs/NAME_OF_THE_CONFIG)")
CACHE = flags.DEFINE_string(
    "cache", None, "Where fetched speech and models are kept (default: ~/.cache/llmcodec_jax)"
)
flags.adopt_module_key_flags(command_line)
flags.mark_flag_as_required("config")


def main(_) -> int:
    command_line.setup_logging()
    config = command_line.CONFIG.value
    path = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = Path(WORKDIR.value or Path("runs") / Path(path).stem)
    if CACHE.value:
        os.environ["LLMCODEC_CACHE"] = CACHE.value
    distributed.join()
    keep_compilations()
    try:
        run(config, workdir)
    except FAILURES as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    command_line.start(main)
