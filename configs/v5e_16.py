"""The paper's scale on sixteen v5e chips (v5e:4x4): four clips of 4 s on each."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.data.batch_size = 64
    c.data.eval_batch_size = 16
    c.data.workers = 8
    c.data.buffer = 16
    return c
