"""The study on a codec of several levels, whose codes the LM reads in turn.

    python -m llmcodec_jax.reproduce --config configs/miniature_residual.py --data DIR --workdir W

configs/miniature.py with three residual levels of 256 codes (1.2 kbit/s, 150 tokens a second) and
its main comparison alone. EnCodec's parts at this size (16 filters, the same losses, no
discriminators) do not get off the ground in the steps that two cores can give them: mel 3.3 after
225, where these stand at 1.6.
"""

from ml_collections import ConfigDict

from configs import miniature
from configs.miniature import variant


def get_config() -> ConfigDict:
    c = miniature.get_config()
    for run in (c.base, c.tuned):
        run.codec.update(codebook_size=256, levels=3)
        run.lm.reads = "flat"
    c.tuned.bridge.frequency_window = 32.0  # counted over longer, levels empty (docs/study.md)
    c.base.total_steps = 2000
    c.base.training.quantiser_dropout = 0.25  # so that fewer levels speak too
    # Three times the tokens a second: as many in a step all the same.
    c.teachers.taught.update(batch=8, seconds=2.0)
    c.evaluation.protocol.seconds = 2.0
    c.variants = ConfigDict(
        {"control": variant(seeds=5, lm={"path": ""}), "ftp_sa": variant(seeds=5)}
    )
    return c
