"""A codec of any family from scratch, no LM: what the recipes in this folder share.

A recipe states its family's published optimiser, schedule, batch and clip; losses and
discriminators are this project's (configs/base.py), whose scales differ from the published ones.
"""

from ml_collections import ConfigDict

from configs import codec_pretrain
from llmcodec_jax.training.config import default_codec


def from_scratch(
    family: str,
    learning_rate: float,
    final: float,
    steps: int,
    batch: int,
    seconds: float,
    **fields,
) -> ConfigDict:
    """`fields`: of the module, other than its defaults; `final`: last rate over the first."""
    c = codec_pretrain.get_config()
    c.codec = ConfigDict(default_codec(family) | fields | {"dtype": "bfloat16"})
    c.total_steps = steps
    c.training.use_domains = False
    for name in ("encoder", "decoder", "discriminators"):
        c.optim.groups[name].update(learning_rate=learning_rate, final=final, warmup=1000 / steps)
    c.data.sources = ("librispeech:data/LibriSpeech",)
    c.data.batch_size = batch
    c.data.clip_seconds = seconds
    return c
