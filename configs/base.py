"""The paper's scale: AUV fine-tuned under frozen Qwen3-4B on LibriSpeech, 25k steps.

States what that run sets; every other option has its default, and all their meanings stand in
llmcodec_jax/training/config.py. Override on the command line with --config.section.field=value.
"""

from ml_collections import ConfigDict

from llmcodec_jax.training.config import default_config, group


def get_config() -> ConfigDict:
    c = default_config()
    c.total_steps = 25_000
    c.init = "auv.pt"  # the published codec

    c.codec.dtype = "bfloat16"  # transforms and the search stay float32
    c.bridge.logits = "projection"  # the paper's W z + b

    c.lm.path = "Qwen3-4B-Instruct-2507"
    c.lm.begin_token = 151_643  # <|endoftext|>: Qwen3 has no BOS; any fixed frozen embedding serves
    c.lm.config = qwen3_4b()

    c.schedule.codec_start = 0.4  # 10k
    c.schedule.adversarial_start = 0.4  # with the codec
    c.schedule.ftp_start = 0.4  # the LM losses' gradient enters the codec ...
    c.schedule.ftp_ramp = 0.08  # ... and is whole at 12k
    c.schedule.sa_start = 0.48  # 12k
    c.schedule.sa_ramp = 0.08  # full weight at 14k

    # One group per part; `pattern` is matched against whole parameter paths, each exactly once.
    sgd = dict(optimizer="sgd", learning_rate=5e-6, weight_decay=1e-4, warmup=0.08)
    adam = dict(optimizer="adamw", learning_rate=1e-4, warmup=0.08)
    c.optim.groups = ConfigDict(
        {
            "encoder": group(r"codec/(?!decoder/).*", "codec_start", **sgd),
            "decoder": group(r"codec/decoder/.*", "codec_start", **sgd),
            "bridge": group(r"bridge/.*", "lm_start", **adam),
            "distillation": group(r"distillation/.*", "", **adam),  # of a run with a teacher
            "audio_embedding": group(r"audio_embedding", "lm_start", **adam),
            "ftp_heads": group(r"ftp_heads", "lm_start", **adam),
            "discriminators": group(r".*", "discriminator_start", **adam, b1=0.8),
        }
    )
    c.data.sources = ("tfds:librispeech:train_clean360",)
    return c


def qwen3_4b() -> ConfigDict:
    """The architecture, for compile_check; training takes what the folder holds."""
    return ConfigDict(
        dict(
            vocab_size=151_936,
            width=2560,
            layers=36,
            heads=32,
            kv_heads=8,
            head_dim=128,
            ffn_width=9728,
            qk_norm=True,
            tied=True,
            rope_theta=5e6,
        )
    )
