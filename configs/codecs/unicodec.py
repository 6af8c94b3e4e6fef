"""UniCodec from scratch: 24 kHz, 75 frames a second, one codebook of 16,384 (1.05 kbit/s).

The acoustic stage alone: no mask prediction before it. Published: AdamW 5e-5 after 5,000 steps of
warm-up, 10 clips of 10 seconds on each device. Speech keeps to the first quarter of the codes,
music to the second, sounds to the rest; vocal is open to all.
"""

from ml_collections import ConfigDict

from configs import codec_pretrain
from configs.codecs import recipe


def get_config() -> ConfigDict:
    c = recipe.from_scratch("unicodec", 5e-5, final=0.0, steps=1_000_000, batch=80, seconds=10.0)
    for name in ("encoder", "decoder", "discriminators"):
        c.optim.groups[name].update(b1=0.9, b2=0.999, warmup=0.005)
    c.training.use_domains = True
    c.training.revive_every = 0  # the codebook is a learnt map of fixed vectors: none can die alone
    c.data.sources = codec_pretrain.get_config().data.sources
    return c
