"""The shipped codec with a second residual level, 1.3 kbit/s: tried, and not worth its bits.

    python -m llmcodec_jax.train --config configs/mini_2.py --workdir runs/mini-2

From `mini` on the same data (configs/mini.py), 25 CPU minutes; the second level starts silent and
on the data. docs/mini.md has what came out.
"""

from ml_collections import ConfigDict

from configs import mini


def get_config() -> ConfigDict:
    c = mini.get_config()
    c.init = "mini"
    c.total_steps = 1500
    c.codec.levels = 2
    c.training.quantiser_dropout = 0.25  # so that the first level alone still speaks
    return c
