"""EnCodec from scratch: 24 kHz, 75 frames a second, 32 x 1,024 codes (24 kbit/s; 8 are 6).

Published: Adam 3e-4, b1 0.5, b2 0.9, 300 epochs of 2,000 updates, 64 clips of a second; a number of
codebooks drawn for every batch and a balancer of the losses' gradients, which are left out.
"""

from ml_collections import ConfigDict

from configs.codecs import recipe


def get_config() -> ConfigDict:
    c = recipe.from_scratch("encodec", 3e-4, final=0.1, steps=600_000, batch=64, seconds=1.0)
    for name in ("encoder", "decoder", "discriminators"):
        c.optim.groups[name].update(b1=0.5, b2=0.9)
    return c
