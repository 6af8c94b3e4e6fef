"""The bridge in the quantiser's own search space instead of the learned projection."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.bridge.logits = "native"
    return c
