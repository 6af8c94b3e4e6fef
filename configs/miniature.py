"""The study in miniature: does the method lower nats per token at equal reconstruction?

One small base codec from scratch, then every variant from that base, for the same steps on the
same data, against the same frozen LM, under one evaluation (llmcodec_jax/reproduce.py).
"""

from ml_collections import ConfigDict

from configs import quickstart
from llmcodec_jax.lm.heads import horizon_weights
from llmcodec_jax.training.schedules import NEVER


def get_config() -> ConfigDict:
    c = ConfigDict()
    # Of each domain in a batch; the sub-folders of --data are its sources.
    c.shares = ConfigDict({"speech": 0.9, "music": 0.07, "audio": 0.03})
    c.base = base()
    c.teacher = teacher()
    c.tuned = tuned(c.base)
    c.variants = variants()
    # Runs of each variant, from seeds 0, 1, ...; 0 leaves it out.
    c.seeds = ConfigDict(
        {
            "control": 3,
            "ftp_sa": 3,
            "entropy_floor": 1,
            "ftp": 1,
            "sa": 1,
            "published": 1,
            "inputs_only": 1,
            "heads_1": 1,
            "heads_3": 1,
            "heads_10": 1,
            "ste": 1,
            "detach": 1,
            "projection": 1,
            "ste_projection": 1,
            "adversarial": 1,
        }
    )
    c.evaluation = evaluation()
    return c


def base() -> ConfigDict:
    """Stage 1: reconstruction (and on a GPU adversarial); no language model."""
    c = quickstart.get_config()
    c.total_steps = 6000
    c.lm.path = ""
    c.schedule.lm_start = 1.0
    # Four times the cost on two cores, so not there. On a GPU: 0.6 and 0.61.
    c.schedule.discriminator_start = NEVER
    c.schedule.adversarial_start = NEVER
    c.optim.groups.discriminators.warmup = 0.01
    c.data.batch_size = 8
    c.log.every = 25
    c.log.eval_every = 500
    c.log.eval_clips = 32
    c.log.checkpoint_every = 250
    return c


def teacher() -> ConfigDict:
    """Stage 2: the LM that every variant trains against (llmcodec_jax/study/teacher.py)."""
    c = ConfigDict()
    c.path = "embedded"  # Hugging Face folder or .gguf; "embedded": SmolLM2-135M-Instruct
    c.width = 256  # of a fresh decoder on its text embeddings; 0 keeps its own layers
    c.layers = 4
    c.steps = 400
    c.batch = 16  # clips
    c.seconds = 3.0  # of a clip
    c.max_text = 32  # tokens of a transcript
    c.text_share = 0.5  # of the clips that follow their transcript
    c.horizons = 10  # heads it learns with: as many as any variant trains against
    c.learning_rate = 3e-3  # of audio rows and heads
    c.body_learning_rate = 1e-3
    return c


def tuned(base: ConfigDict) -> ConfigDict:
    """Stage 3: what all variants share. As it stands: FTP and SA, gradient through the targets."""
    c = base.copy_and_resolve_references()
    c.total_steps = 300
    c.discriminators.enabled = False  # acoustic losses and the LM's alone, in every variant
    c.lm.path = "teacher"  # that of stage 2
    c.bridge.target_gradient = 1.0
    c.bridge.frequency_weight = 1.3
    c.weights.ftp = FTP
    c.schedule.lm_start = 0.0
    c.schedule.ftp_start = 0.05  # the heads follow the variant's own noise first
    c.schedule.ftp_ramp = 0.1
    c.schedule.sa_start = 0.05
    c.schedule.sa_ramp = 0.1
    c.schedule.temperature_steps = 0.5
    c.weights.mel_final = c.weights.mel  # the control's losses stand still
    c.training.revive_every = 0
    c.training.train_norm = False  # the base's statistics stay: no variant is to drift by them
    for name in ("encoder", "decoder"):
        c.optim.groups[name].update(learning_rate=3e-4, warmup=0.05, final=0.02)
    for name in ("audio_embedding", "ftp_heads", "bridge"):
        c.optim.groups[name].update(learning_rate=1e-3, warmup=0.05)
    c.optim.groups.bridge.update(optimizer="adamw", b2=0.99)
    c.data.batch_size = 6
    c.data.clip_seconds = 3.0  # most prompts whole, and so with their text
    c.log.eval_every = 150
    c.log.checkpoint_every = 100
    return c


FTP = 0.32  # weight of the future tokens' loss, with 5 heads


def heads(horizons: int) -> dict:
    """Another number of heads, with the next code's share of the loss held at that of 5 heads."""
    share = [horizon_weights(count)[0] for count in (5, horizons)]
    return {"lm": {"horizons": horizons}, "weights": {"ftp": float(FTP * share[0] / share[1])}}


def variants() -> ConfigDict:
    """What each variant changes of `tuned`."""
    return ConfigDict(
        {
            "control": {"lm": {"path": ""}},  # acoustic losses alone
            "ftp_sa": {},
            # Leans on frequent codes harder: more entropy than the control, fewer nats won.
            "entropy_floor": {"bridge": {"frequency_weight": 1.5}},
            "ftp": {"weights": {"sa_cosine": 0.0, "sa_contrastive": 0.0}},
            "sa": {"weights": {"ftp": 0.0}},
            # The paper's losses and bridge: learned projection, Gumbel noise, no target gradient.
            "published": {
                "bridge": {"target_gradient": 0.0, "logits": "projection"},
                "weights": {"ftp": 0.2, "bridge": 1.0},
            },
            # FTP's gradient as published, but over a bridge that agrees with the quantiser.
            "inputs_only": {"bridge": {"target_gradient": 0.0}},
            "heads_1": heads(1),
            "heads_3": heads(3),
            "heads_10": heads(10),
            "ste": {"bridge": {"mode": "ste"}},
            # Nothing of the LM reaches the codec, so its logits cannot matter: one row for both.
            "detach": {"bridge": {"mode": "detach", "target_gradient": 0.0}},
            "projection": {"bridge": {"logits": "projection"}},
            "ste_projection": {"bridge": {"mode": "ste", "logits": "projection"}},
            # The control with fresh discriminators, heard once they have seen 60 steps.
            "adversarial": {
                "lm": {"path": ""},
                "discriminators": {"enabled": True},
                "schedule": {"discriminator_start": 0.0, "adversarial_start": 0.2},
                "optim": {"groups": {"discriminators": {"warmup": 0.05}}},
            },
        }
    )


def evaluation() -> ConfigDict:
    """Stage 4: the same for every codec."""
    c = ConfigDict()
    c.clips = 12  # held-out clips of each source for reconstruction
    c.pairs = 120  # of each part of the coherence suite
    c.consistency = 16  # clips, as many of each source
    c.lm_seeds = 3  # token LMs on the base: what their noise is on one fixed codec
    c.protocol = ConfigDict()  # of the token LM (llmcodec_jax/evaluation/protocol.py)
    c.protocol.steps = 400
    c.protocol.learning_rate = 2e-3
    c.protocol.batch = 16
    c.protocol.seconds = 4.0
    c.protocol.width = 192
    c.protocol.layers = 3
    c.protocol.seeds = (0,)
    return c
