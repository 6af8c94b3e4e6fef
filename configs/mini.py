"""The shipped codec: `mini-0.1` taught voices it never heard, with eight times the codes.

    python -m llmcodec_jax.study.public_audio data/mini
    python -m llmcodec_jax.train --config configs/mini.py --workdir runs/mini

LibriSpeech's train-clean-100 (or any folder of many voices) is expected in data/mini/librispeech;
any other place by --config.data.sources. From the older shipped codec, because what that lacks is
voices: without its quantiser it is hardly better on unseen ones, so data comes before size.
About an hour and a half of two cores; docs/mini.md has what came out and what was tried.
"""

from ml_collections import ConfigDict

from configs import miniature

LANGUAGES = ("en", "es", "fr", "it", "ru")
# Half of all clips are real voices of which there are many; the rest keeps what is known.
SOURCES = (
    ("folder:data/mini/librispeech", 0.52, "speech"),
    ("librispeech:data/mini/voices_en", 0.12, "speech"),
    *((f"librispeech:data/mini/prompts_{code}", 0.06, "speech") for code in LANGUAGES),
    ("folder:data/mini/music", 0.04, "music"),
    ("folder:data/mini/sound", 0.02, "audio"),
)


def get_config() -> ConfigDict:
    c = miniature.base()
    c.init = "mini-0.1"
    c.total_steps = 2100
    c.codec.codebook_size = 8192  # 650 bits a second; the start's rows are copied and nudged
    c.discriminators.enabled = False

    # Warm: half the rate that learns from noise.
    for name in ("encoder", "decoder"):
        c.optim.groups[name].update(learning_rate=1e-3, warmup=0.05, final=0.02)
    c.weights.mel_final = c.weights.mel

    c.data.sources = SOURCES
    return c
