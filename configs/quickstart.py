"""Two CPU cores, a quarter of an hour: every objective of the method on real speech.

A small codec from scratch, small discriminators, and a real frozen LM (SmolLM2-135M-Instruct).
Data and LM are fetched on the first run; no account is needed.
"""

from configs import base


def get_config():
    c = base.get_config()
    c.total_steps = 600
    c.init = ""  # from scratch

    c.codec.width = 128
    c.codec.encoder_layers = 2
    c.codec.decoder_layers = 3
    c.codec.codebook_size = 1024
    c.codec.dtype = "float32"  # CPUs have no fast bfloat16

    c.discriminators.period_channels = (8, 16, 32, 64)
    c.discriminators.scale_channels = (8, 16, 32, 64)
    c.discriminators.periods = (2, 5)
    c.discriminators.scales = 1
    c.discriminators.dtype = "float32"

    c.lm.path = "embedded"
    c.lm.config = type(c)()  # whatever the file holds
    c.lm.begin_token = 0  # <|endoftext|>
    c.lm.bank = 64
    c.lm.dtype = "float32"
    c.lm.remat = False

    c.bridge.logits = "native"  # agrees with the quantiser by construction
    c.bridge.jitter = 0  # one encoder pass serves both branches
    return c
