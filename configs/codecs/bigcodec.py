"""BigCodec from scratch: 16 kHz, 80 frames a second, one codebook of 8,192 (1.04 kbit/s).

Published: AdamW 1e-4 falling to 1e-5, betas 0.8 and 0.9, gradients clipped at 1, batch 8 on each
device, 1.2 million steps.
"""

from ml_collections import ConfigDict

from configs.codecs import recipe


def get_config() -> ConfigDict:
    c = recipe.from_scratch("bigcodec", 1e-4, final=0.1, steps=1_200_000, batch=32, seconds=1.0)
    for name in ("encoder", "decoder", "discriminators"):
        c.optim.groups[name].update(b1=0.8, b2=0.9, clip=1.0)
    return c
