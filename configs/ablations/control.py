"""The control: the same codec, data and steps with the acoustic losses alone."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.lm.path = ""
    return c
