"""The study in miniature: does the method lower nats per token at equal reconstruction?

One small base codec from scratch, then every variant from that base, for the same steps on the
same data, against the same frozen LM, under one evaluation (llmcodec_jax/reproduce.py).
"""

from ml_collections import ConfigDict

from configs import quickstart
from llmcodec_jax.lm.heads import horizon_weights
from llmcodec_jax.study.config import default_study, teacher, variant
from llmcodec_jax.training.schedules import NEVER


def get_config() -> ConfigDict:
    c = default_study()
    # Of each domain in a batch; the sub-folders of --data are its sources.
    c.shares = ConfigDict({"speech": 0.9, "music": 0.07, "audio": 0.03})
    c.base = base()
    c.teachers = ConfigDict({"taught": taught(), "text": text_only()})
    c.tuned = tuned(c.base)
    c.variants = ConfigDict(variants())
    c.evaluation.update(clips=6, unseen=24, pairs=24, consistency=8)
    protocol = dict(steps=400, learning_rate=3e-3, batch=16, seconds=4.0, width=128, layers=2)
    c.evaluation.protocol.update(protocol, seeds=(0,))
    return c


def base() -> ConfigDict:
    """Stage 1: reconstruction (and on a GPU adversarial); no language model."""
    c = quickstart.get_config()
    c.total_steps = 4000
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


def taught() -> dict:
    """Stage 2: a small LM that learns the base codec's tokens, body and all."""
    return teacher(
        width=256,  # a fresh decoder on the text LM's embeddings; 0 keeps its own layers
        layers=4,
        steps=400,
        horizons=10,  # as many as any variant trains against
        body_learning_rate=2e-3,
    )


def text_only() -> dict:
    """Stage 2, the paper's case: a text LM that never heard audio, only its audio rows taught.

    All 30 layers of SmolLM2-135M: a step costs some forty times one of `taught`.
    """
    return teacher(width=0, layers=0, steps=200, batch=8, horizons=5, body_learning_rate=0.0)


def tuned(base: ConfigDict) -> ConfigDict:
    """Stage 3: what all variants share. As it stands: FTP and SA, gradient through the targets."""
    c = base.copy_and_resolve_references()
    c.total_steps = 300
    c.discriminators.enabled = False  # acoustic losses and the LM's alone, in every variant
    c.lm.path = "teacher"  # that of the row
    c.bridge.target_gradient = 1.0
    c.bridge.frequency_weight = 1.3
    c.bridge.frequency_window = 90.0  # a hundred steps of full clips, as the rows were run
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


def variants() -> dict:
    """The rows: how many seeds, which teacher, and what each changes of `tuned`."""
    no_lm = {"path": ""}
    return {
        "control": variant(seeds=5, lm=no_lm),  # acoustic losses alone
        "ftp_sa": variant(seeds=5),
        "ftp": variant(seeds=3, weights={"sa_cosine": 0.0, "sa_contrastive": 0.0}),
        "sa": variant(seeds=3, weights={"ftp": 0.0}),
        # The paper's losses and bridge: learned projection, Gumbel noise, no target gradient.
        "published": variant(
            seeds=3,
            bridge={"target_gradient": 0.0, "logits": "projection"},
            weights={"ftp": 0.2, "bridge": 1.0},
        ),
        # `published` in all but one setting: a bridge that agrees with the quantiser.
        "inputs_only": variant(
            seeds=3,
            bridge={"target_gradient": 0.0, "logits": "native"},
            weights={"ftp": 0.2, "bridge": 1.0},
        ),
        "heads_1": variant(seeds=3, **heads(1)),
        "teacher_text": variant(seeds=3, teacher="text"),
        # FTP and SA, and tokens that are to stay themselves.
        "consistency": variant(
            seeds=3,
            weights={f"consistency_{kind}": 0.1 for kind in ("slice", "shift", "noise")},
        ),
        # FTP and SA, and what is won by saying a code twice taken back: at 2 codes repeat as the
        # control's do, at 3 less often (docs/study.md).
        "no_repeats": variant(seeds=5, weights={"repeats": 2.0}),
        # The rest is run where it is asked for: --config.variants.NAME.seeds=1.
        # The frontier: half and twice the weight.
        "ftp_sa_half": variant(seeds=0, weights={"ftp": FTP / 2}),
        "ftp_sa_twice": variant(seeds=0, weights={"ftp": FTP * 2}),
        # Twice the weight with repeats held: at 4 they are nearly the control's.
        "no_repeats_twice": variant(seeds=0, weights={"ftp": FTP * 2, "repeats": 4.0}),
        # Leans on frequent codes harder: more entropy than the control, fewer nats won.
        "entropy_floor": variant(seeds=0, bridge={"frequency_weight": 1.5}),
        "heads_3": variant(seeds=0, **heads(3)),
        "heads_10": variant(seeds=0, **heads(10)),
        "ste": variant(seeds=0, bridge={"mode": "ste"}),
        # Nothing of the LM reaches the codec, so its logits cannot matter: one row for both.
        "detach": variant(seeds=0, bridge={"mode": "detach", "target_gradient": 0.0}),
        "projection": variant(seeds=0, bridge={"logits": "projection"}),
        "ste_projection": variant(seeds=0, bridge={"mode": "ste", "logits": "projection"}),
        # The control with fresh discriminators, heard once they have seen 60 steps.
        "adversarial": variant(
            seeds=0,
            lm=no_lm,
            discriminators={"enabled": True},
            schedule={"discriminator_start": 0.0, "adversarial_start": 0.2},
            optim={"groups": {"discriminators": {"warmup": 0.05}}},
        ),
    }
