"""A larger batch on sixteen v6e chips (v6e:4x4): sixteen clips of 4 s on each."""

from ml_collections import ConfigDict

from configs import v6e_16


def get_config() -> ConfigDict:
    c = v6e_16.get_config()
    c.data.batch_size = 256
    return c
