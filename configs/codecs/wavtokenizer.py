"""WavTokenizer from scratch: 24 kHz, 75 frames a second, one codebook of 4,096 (0.9 kbit/s).

Published: AdamW 2e-4 falling by a cosine to zero, a million steps, 8 x 40 clips of 3 seconds.
Strides (4, 5, 5, 6) make the 40 Hz codec (0.48 kbit/s). The published dropout of 0.1 in the
decoder's residual blocks is left out.
"""

from ml_collections import ConfigDict

from configs.codecs import recipe


def get_config() -> ConfigDict:
    c = recipe.from_scratch(
        "wavtokenizer", 2e-4, final=0.0, steps=1_000_000, batch=320, seconds=3.0
    )
    for name in ("encoder", "decoder", "discriminators"):
        c.optim.groups[name].update(b1=0.9, b2=0.999)
    return c
