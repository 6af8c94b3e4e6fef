"""A base codec from scratch: several domains, nested partitions, adversarial, no LM (method.md 1).

The result is what configs/base.py fine-tunes: --config.init=runs/codec_pretrain. Name your own
audio in `data.sources`: each entry is (source, weight, domain).
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.total_steps = 400_000
    c.init = ""  # from scratch

    c.lm.path = ""  # no language model
    c.lm.config = None

    c.schedule.codec_start = 0.0
    c.schedule.discriminator_start = 0.05  # the codec makes speech-like sound first
    c.schedule.adversarial_start = 0.06

    c.training.use_domains = True  # nested partitions: speech keeps to its codes
    c.training.revive_every = 50
    c.training.revive_below = 0.1

    adam = dict(optimizer="adamw", learning_rate=2e-4, b1=0.8, b2=0.99, weight_decay=1e-2)
    for name in ("encoder", "decoder"):
        c.optim.groups[name].update(adam, warmup=0.005, final=0.01)
    c.optim.groups.discriminators.update(learning_rate=2e-4, warmup=0.005, final=0.01)

    c.data.sources = (
        ("librispeech:data/LibriSpeech/train-clean-360", 0.6, "speech"),
        ("folder:data/vocal", 0.1, "vocal"),
        ("folder:data/music", 0.2, "music"),
        ("folder:data/sound", 0.1, "audio"),
    )
    c.data.batch_size = 64
    c.data.clip_seconds = 2.0
    c.data.workers = 4
    c.log.eval_every = 5000
    c.log.checkpoint_every = 5000
    return c
