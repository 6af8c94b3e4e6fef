"""What would follow configs/mini.py: FTP and SA from runs/mini, before and after; not run yet.

    python -m llmcodec_jax.reproduce --config configs/mini_lm.py --data data/mini --workdir W

A study whose base is the finished codec: its stage moves nothing. The LM is a small one, taught
this codec's tokens; the result is W/variants/ftp_sa-0.
"""

from ml_collections import ConfigDict

from configs import mini, miniature
from configs.miniature import variant


def get_config() -> ConfigDict:
    c = miniature.get_config()
    c.sources = mini.SOURCES
    c.base = mini.get_config()
    c.base.update(init="runs/mini", total_steps=20)
    c.base.training.update(train_norm=False, revive_every=0)
    for name in ("encoder", "decoder"):
        c.base.optim.groups[name].learning_rate = 0.0
    c.tuned = miniature.tuned(c.base)
    c.variants = ConfigDict({"control": variant(lm={"path": ""}), "ftp_sa": variant()})
    return c
