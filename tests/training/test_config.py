"""The typed config: one source of defaults, clear refusals, what a run may change."""

import dataclasses

import pytest

from configs import base, codec_pretrain, quickstart
from llmcodec_jax.errors import UsageError
from llmcodec_jax.ops import fields
from llmcodec_jax.training.config import RunConfig, default_config, may_change, read_config
from llmcodec_jax.training.terms import TERMS, LossWeights


def test_the_default_config_holds_every_option_and_reads_back_to_the_defaults():
    run = read_config(default_config())
    for field in dataclasses.fields(RunConfig):
        if field.default_factory is not dataclasses.MISSING and field.name != "source":
            assert getattr(run, field.name) == field.default_factory(), field.name
    assert run.codec == type(run.codec)()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"totl_steps": 5}, "config.totl_steps is unknown; the nearest is total_steps"),
        ({"lm": {"horizon": 5}}, "config.lm.horizon is unknown; the nearest is horizons"),
        ({"lm": {"config": {"layer": 5}}}, "config.lm.config.layer is unknown"),
        ({"codec": {"name": "auvv"}}, "no codec architecture 'auvv'"),
        ({"codec": {"hops": 320}}, "config.codec.hops is unknown; the nearest is hop"),
        ({"weights": {"mel": -1.0}}, "weights.mel is negative"),
        ({"bridge": {"mode": "straight"}}, "bridge.mode is one of"),
        ({"spectral": {"phase": "loud"}}, "spectral.phase is"),
        ({"total_steps": 0}, "at least 1"),
        ({"bridge": {"jitter_seconds": 24.0}}, "in seconds"),
    ],
)
def test_what_cannot_be_is_named(change, message):
    c = base.get_config()
    with c.unlocked():
        c.update(change)
    with pytest.raises(ValueError, match=message):
        read_config(c)


@pytest.mark.parametrize("config", [base, codec_pretrain, quickstart])
def test_group_starts_follow_the_schedule(config):
    """In every config, and whatever the command line makes of the schedule."""
    c = config.get_config()
    c.schedule.codec_start = c.schedule.lm_start
    run = read_config(c)
    for group in run.optim.groups.values():
        wanted = getattr(run.schedule, group.start) if group.start else 0.0
        assert run.schedule.start_of(group.start) == wanted


def test_an_unknown_start_is_refused():
    c = base.get_config()
    c.optim.groups.encoder.start = "codec"
    with pytest.raises(UsageError, match="schedule has no 'codec'"):
        read_config(c)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("seed", False),
        ("total_steps", True),
        ("codec.name", False),
        ("codec.width", False),
        ("codec.dtype", True),
        ("codec.remat", True),
        ("discriminators.periods", False),
        ("discriminators.loss", True),
        ("discriminators.r1_every", True),
        ("lm.path", True),
        ("lm.horizons", False),
        ("lm.reads", False),
        ("lm.bank", False),
        ("lm.config.layers", False),
        ("bridge.logits", False),
        ("bridge.mode", True),
        ("schedule.codec_start", True),
        ("weights.mel", True),
        ("optim.groups.encoder.pattern", False),
        ("optim.groups.encoder.optimizer", False),
        ("optim.groups.encoder.learning_rate", True),
        ("data.sources", False),
        ("data.eval_fraction", False),
        ("data.threads", True),
        ("data.buffer", True),
        ("data.eval_batch_size", True),
        ("mesh.fsdp", True),
        ("log.every", True),
    ],
)
def test_marks_say_what_a_run_may_change(path, allowed):
    assert may_change(path, "auv") == allowed


def test_every_weight_is_a_term_and_every_term_a_weight():
    names = set(fields.defaults(LossWeights))
    finals = {f"{t.name}_final" for t in TERMS if t.falls}
    assert names == {t.name for t in TERMS} | finals | {"r1"}
