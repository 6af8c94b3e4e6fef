"""The paper's scale on a v5p-8 slice, four chips (v5p:2x2x1): the nearest batch to its ten."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.data.batch_size = 12
    c.data.eval_batch_size = 8
    c.data.workers = 8
    c.data.buffer = 16
    return c
