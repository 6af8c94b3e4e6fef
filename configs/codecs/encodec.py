"""EnCodec from scratch: 24 kHz, 75 frames a second, 32 x 1,024 codes (24 kbit/s; 8 are 6).

Published: Adam 3e-4, b1 0.5, b2 0.9, 300 epochs of 2,000 updates, 64 clips of a second; one of
five bit rates drawn for every batch (here a number of codebooks for every clip) and a balancer of
the losses' gradients. 48 kHz: `sample_rate=48_000, channels=2, norm="group", causal=False,
normalise=True, window_seconds=1.0, width=129, levels=17`.
"""

from ml_collections import ConfigDict

from configs.codecs import recipe


def get_config() -> ConfigDict:
    c = recipe.from_scratch("encodec", 3e-4, final=0.1, steps=600_000, batch=64, seconds=1.0)
    for name in ("encoder", "decoder", "discriminators"):
        c.optim.groups[name].update(b1=0.5, b2=0.9)
    c.training.update(quantiser_dropout=1.0, balance=1.0)
    return c
