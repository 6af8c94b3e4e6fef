"""The paper's scale on sixteen v6e chips (v6e:4x4): the batch of sixteen v5e chips."""

from configs.v5e_16 import get_config

__all__ = ["get_config"]
