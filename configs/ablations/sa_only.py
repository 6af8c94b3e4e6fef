"""Semantic alignment without future-token prediction."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.weights.ftp = 0.0
    return c
