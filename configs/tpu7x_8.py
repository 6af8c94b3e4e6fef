"""The paper's scale on four TPU7x chips, eight devices (tpu7x:2x2x1): sixteen clips on each."""

from ml_collections import ConfigDict

from configs import v5e_16


def get_config() -> ConfigDict:
    c = v5e_16.get_config()
    c.data.batch_size = 128
    c.data.eval_batch_size = 16
    return c
