"""Speech and text in turns on a pretrained LM (SpeechGPT's cross-modal format, arXiv 2305.11000).

Each transcribed clip becomes one exchange: heard speech is written down, or written text is said.
The LM's own weights stay, adapters and the codes' rows learn.
"""

from ml_collections import ConfigDict

from configs.speech import continuation


def get_config() -> ConfigDict:
    c = continuation.get_config()
    c.task = "chat"
    c.lm.path = "embedded"  # SmolLM2-135M-Instruct
    c.lm.tune = "lora"
    c.lm.horizons = 1  # text is written too, which no further head proposes
    c.data.lowercase = False
    c.data.length = 768
    c.data.batch_size = 4
    return c
