"""The study on a codec of several levels: a small EnCodec, whose codes the LM reads in turn.

    python -m llmcodec_jax.reproduce --config configs/miniature_residual.py --data DIR --workdir W

configs/miniature.py with another codec and its main comparison alone: 16 kHz, 50 frames a second,
3 x 256 codes (1.2 kbit/s), 150 tokens a second.
"""

from ml_collections import ConfigDict

from configs import miniature
from configs.miniature import variant
from llmcodec_jax.training.config import default_codec


def get_config() -> ConfigDict:
    c = miniature.get_config()
    for run in (c.base, c.tuned):
        run.codec = ConfigDict(default_codec("encodec") | residual())
        run.lm.reads = "flat"
    c.base.training.quantiser_dropout = 0.25  # so that fewer levels speak too
    c.variants = ConfigDict(
        {"control": variant(seeds=5, lm={"path": ""}), "ftp_sa": variant(seeds=5)}
    )
    return c


def residual() -> dict:
    """The codec: EnCodec's parts at a size that two cores can train."""
    return dict(
        sample_rate=16_000,
        filters=16,
        width=64,
        lstm_layers=1,
        pad_mode="zero",
        codebook_size=256,
        levels=3,
        dtype="float32",
    )
