"""One small module of every family, and the toy: what the conformance suite runs on."""

from llmcodec_jax.codec.auv.model import AUV
from tests.codec.small_codec import SMALL
from tests.codec.toy_codec import ToyCodec

EXAMPLES = {
    "auv": AUV(**SMALL),
    "auv_levels": AUV(**SMALL, levels=2),
    "toy": ToyCodec(),
}
"""A family's name, or that and "_WHAT" for another of its forms -> module."""
