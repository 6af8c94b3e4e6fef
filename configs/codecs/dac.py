"""DAC from scratch: 44.1 kHz, 86 frames a second, 9 x 1,024 codes (7.8 kbit/s).

Published: AdamW 1e-4, b1 0.8, b2 0.99, falling by 0.999996 a step (to a fifth in 400,000), 72 clips
of 0.38 s; half the clips of a batch use a drawn number of codebooks. 24 kHz:
`sample_rate=24_000, strides=(2, 4, 5, 8), levels=32`; 16 kHz: 12 levels.
"""

from ml_collections import ConfigDict

from configs.codecs import recipe


def get_config() -> ConfigDict:
    c = recipe.from_scratch("dac", 1e-4, final=0.2, steps=400_000, batch=72, seconds=0.38)
    for name in ("encoder", "decoder", "discriminators"):
        c.optim.groups[name].update(b1=0.8, b2=0.99)
    c.training.quantiser_dropout = 0.5
    return c
