"""Mimi from scratch: 24 kHz, 12.5 frames a second, 1 semantic + 31 x 2,048 codes (4.4 kbit/s).

Published: AdamW 8e-4, b1 0.5, b2 0.9, weight decay 0.05 on the transformers, a million steps, 64
clips of 12 s. The semantic codebook's teacher (`distillation.teacher`) is off, and the dropout of
whole quantisation is left out.
"""

from ml_collections import ConfigDict

from configs.codecs import recipe


def get_config() -> ConfigDict:
    c = recipe.from_scratch("mimi", 8e-4, final=0.0, steps=1_000_000, batch=64, seconds=12.0)
    for name in ("encoder", "decoder", "discriminators"):
        c.optim.groups[name].update(b1=0.5, b2=0.9, weight_decay=0.05)
    c.training.quantiser_dropout = 1.0
    return c
