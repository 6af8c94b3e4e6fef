"""The timetable: phases, ramps and horizons that follow from the run's own length."""

import numpy as np
import pytest

from configs import base, codec_pretrain, quickstart
from llmcodec_jax.training.config import read_config
from llmcodec_jax.training.schedules import NEVER, Phase, Schedule
from llmcodec_jax.training.terms import LossWeights


def paper() -> Schedule:
    return read_config(base.get_config()).schedule


def test_paper_timetable_falls_on_the_papers_steps():
    schedule = paper()
    assert schedule.phases() == [
        (0, Phase(codec=False, discriminator=True, lm=True)),
        (10_000, Phase(codec=True, discriminator=True, lm=True)),
    ]
    assert float(schedule.codec_gate(9_999)) == 0
    assert float(schedule.codec_gate(10_000)) > 0
    assert float(schedule.codec_gate(12_000)) == 1
    weights = LossWeights()
    assert float(weights.at(11_999, schedule)["sa_cosine"]) == 0
    assert np.isclose(weights.at(14_000, schedule)["sa_cosine"], 0.1)
    assert np.isclose(weights.at(14_000, schedule)["sa_contrastive"], 0.05)
    assert weights.at(9_999, schedule)["adversarial"] == 0
    assert weights.at(10_000, schedule)["adversarial"] == 1


def test_rates_decay_to_zero_within_the_run():
    """The published horizons of 200k and 50k steps hardly decay in a run of 25k."""
    schedule = paper()
    rates = [float(schedule.learning_rate(s, 1.0, 0.4, 0.08, 0.0)) for s in range(0, 25_000, 500)]
    assert max(rates[:20]) == 0  # before its own start
    assert np.isclose(max(rates), 1.0)
    assert rates.index(max(rates)) == 24  # the warm-up is counted from the start, to 12k
    assert float(schedule.learning_rate(24_999, 1.0, 0.4, 0.08, 0.0)) < 1e-3


def test_temperature_anneals_from_the_lms_own_start():
    late = Schedule(1000, lm_start=0.5, temperature_steps=0.2)
    assert np.isclose(late.temperature(400), 1.0)
    assert np.isclose(late.temperature(500), 1.0)
    assert np.isclose(late.temperature(700), 0.3)
    linear = Schedule(100, temperature_shape="linear", temperature_end=0.1, temperature_steps=0.6)
    assert np.isclose(linear.temperature(30), 0.55)


def test_a_longer_run_stretches_everything():
    for fraction in (0.1, 0.45, 0.5, 0.9):
        short, long = (
            Schedule(1000, ftp_start=0.4, ftp_ramp=0.1),
            Schedule(10_000, ftp_start=0.4, ftp_ramp=0.1),
        )
        gates = short.codec_gate(1000 * fraction), long.codec_gate(10_000 * fraction)
        assert np.isclose(*gates, atol=0.02)


def test_more_than_three_phases_are_refused():
    with pytest.raises(ValueError, match="more than three phases"):
        Schedule(100, codec_start=0.1, discriminator_start=0.2, lm_start=0.3)


def test_never_switches_a_part_off():
    schedule = Schedule(100, lm_start=NEVER)
    assert not any(phase.lm for _, phase in schedule.phases())


@pytest.mark.parametrize("config", [base, codec_pretrain, quickstart])
def test_shipped_configs_have_valid_timetables(config):
    assert len(read_config(config.get_config()).schedule.phases()) <= 3
