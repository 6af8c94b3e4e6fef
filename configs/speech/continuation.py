"""Speech goes on: three seconds of anyone, and the LM continues (AudioLM, arXiv 2209.03143).

From scratch on recordings without text. Every option: llmcodec_jax/speech_lm/config.py.
"""

from ml_collections import ConfigDict

from llmcodec_jax.speech_lm.config import default_config


def get_config() -> ConfigDict:
    c = default_config()
    c.task = "continuation"
    c.codec = "mini"
    c.data.sources = ("embedded",)
    c.data.max_seconds = 10.0
    c.total_steps = 5_000
    c.log.every = 20
    c.log.eval_every = 250
    c.log.checkpoint_every = 250
    return c
