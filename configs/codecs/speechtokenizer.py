"""SpeechTokenizer from scratch: 16 kHz, 50 frames a second, 8 x 1,024 codes (4 kbit/s).

Without its distillation the first level learns sound as the others do: `distillation.teacher` and
`weights.distillation` bring a teacher in, by a projection of the trainer's own.
"""

from ml_collections import ConfigDict

from configs.codecs import recipe


def get_config() -> ConfigDict:
    return recipe.from_scratch(
        "speechtokenizer", 1e-4, final=0.0, steps=500_000, batch=48, seconds=3.0
    )
