"""Future-token prediction without semantic alignment."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.weights.sa_cosine = 0.0
    c.weights.sa_contrastive = 0.0
    return c
