"""The paper's scale on a v5p-8 slice, four chips (v5p:2x2x1): the nearest batch to its ten."""

from ml_collections import ConfigDict

from configs import v5e_16


def get_config() -> ConfigDict:
    c = v5e_16.get_config()
    c.data.batch_size = 12
    c.data.eval_batch_size = 8
    return c
