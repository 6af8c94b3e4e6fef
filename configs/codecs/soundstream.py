"""SoundStream from scratch: 24 kHz, 75 frames a second, 8 x 1,024 codes (6 kbit/s).

The architecture of Zeghidour et al. 2021 (arXiv 2107.03312) in the parts of EnCodec: causal, no
recurrent layer, three residual units of dilation 1, 3 and 9 with kernels of 7 and identity
shortcuts, no weight norm. The encoder's last kernel is 7 where the paper's is 3.
"""

from ml_collections import ConfigDict

from configs.codecs import recipe


def get_config() -> ConfigDict:
    c = recipe.from_scratch(
        "encodec",
        1e-4,
        final=0.1,
        steps=1_000_000,
        batch=64,
        seconds=1.0,
        width=512,
        residual_kernel=7,
        residual_layers=3,
        dilation_growth=3,
        compress=1,
        shortcut=False,
        norm="none",
        pad_mode="zero",
        lstm_layers=0,
        levels=8,
    )
    c.training.quantiser_dropout = 1.0
    return c
