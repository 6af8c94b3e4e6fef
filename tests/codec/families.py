"""One small module of every family, and the toy: what the conformance suite runs on."""

from llmcodec_jax.codec.auv.model import AUV
from llmcodec_jax.codec.conv.bigcodec import BigCodec
from llmcodec_jax.codec.conv.dac import DAC
from llmcodec_jax.codec.conv.encodec import EnCodec
from llmcodec_jax.codec.conv.mimi import Mimi
from llmcodec_jax.codec.conv.speechtokenizer import SpeechTokenizer
from llmcodec_jax.codec.conv.unicodec import UniCodec
from llmcodec_jax.codec.conv.wavtokenizer import WavTokenizer
from tests.codec.toy_codec import ToyCodec
from tests.tiny import SMALL

ENCODEC = dict(strides=(2, 4), filters=4, width=12, lstm_layers=1, codebook_size=24, levels=3)

# fmt: off
EXAMPLES = {
    "auv": AUV(**SMALL),
    "auv_levels": AUV(**SMALL, levels=2),
    "bigcodec": BigCodec(
        strides=(2, 5), filters=4, width=24, decoder_channels=32, codebook_size=24, code_dim=4,
        dilations=(1,), lstm_layers=1,
    ),
    "dac": DAC(
        sample_rate=16_000, strides=(2, 5), filters=4, width=12, decoder_channels=16,
        codebook_size=24, code_dim=4, levels=2,
    ),
    "encodec": EnCodec(**ENCODEC, learning="gradient"),
    "encodec_running": EnCodec(**ENCODEC, sample_rate=16_000, pad_mode="zero"),
    "encodec_48khz": EnCodec(
        **ENCODEC, channels=2, norm="group", causal=False, normalise=True, window_seconds=1.0,
    ),
    "mimi": Mimi(
        strides=(4,), filters=4, width=16, transformer_layers=1, heads=2, hidden=32, window=10,
        codebook_size=24, code_dim=6, levels=3, learning="gradient", layer_scale=1.0,
    ),
    "speechtokenizer": SpeechTokenizer(
        strides=(2, 5), filters=4, width=12, semantic_width=10, lstm_layers=1, codebook_size=24,
        levels=2,
    ),
    "unicodec": UniCodec(
        strides=(2, 5), filters=4, width=12, transformer_layers=1, heads=2, expert_hidden=16,
        codebook_size=24, decoder_width=32, decoder_hidden=48, decoder_layers=1,
    ),
    "wavtokenizer": WavTokenizer(
        strides=(2, 5), filters=4, width=12, lstm_layers=1, codebook_size=24, decoder_width=32,
        decoder_hidden=48, decoder_layers=1,
    ),
    "toy": ToyCodec(),
}
# fmt: on
"""A family's name, or that and "_WHAT" for another of its forms -> module."""

QUICK = ("auv", "toy", "encodec", "wavtokenizer")
"""One of each kind, tested by default; the others are compiled by `pytest -m slow`."""
