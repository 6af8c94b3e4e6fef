"""What follows configs/mini.py: FTP and SA from the shipped codec, before and after.

    python -m llmcodec_jax.reproduce --config configs/mini_lm.py --data data/mini --workdir W

A study whose base is the finished codec: its stage moves nothing. The LM is a small one, taught
this codec's tokens; the result is W/variants/ftp_sa-0. docs/mini.md has what came out.
"""

from ml_collections import ConfigDict

from configs import mini, miniature
from configs.miniature import variant


def get_config() -> ConfigDict:
    c = miniature.get_config()
    c.base = mini.get_config()
    c.base.update(init="mini", total_steps=20)
    c.base.training.update(train_norm=False, revive_every=0)
    for name in ("encoder", "decoder"):
        c.base.optim.groups[name].learning_rate = 0.0
    c.tuned = miniature.tuned(c.base)
    # Of 8,192 codes a head costs eight times as much as in the study: half the clips and heads.
    c.teachers.taught.update(batch=8, horizons=5)
    c.variants = ConfigDict({"control": variant(lm={"path": ""}), "ftp_sa": variant()})
    return c
