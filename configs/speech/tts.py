"""Text and three seconds of a voice -> speech (VALL-E's task, arXiv 2301.02111, in one decoder)."""

from ml_collections import ConfigDict

from configs.speech import continuation


def get_config() -> ConfigDict:
    c = continuation.get_config()
    c.task = "tts"
    c.data.split_by = "text"  # held-out sentences; "speaker" holds voices out
    return c
