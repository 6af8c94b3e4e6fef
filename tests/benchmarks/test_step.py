"""The benchmark of a training step: what it prints, and that it runs on a shrunk config."""

import pytest

from configs import quickstart
from llmcodec_jax.benchmarks import step
from llmcodec_jax.training.config import read_config


def shrunk():
    c = quickstart.get_config()
    c.codec.update(width=64, encoder_layers=1, decoder_layers=1, codebook_size=64)
    c.discriminators.update(periods=(2,), period_channels=(4, 8), scale_channels=(4, 8))
    c.lm.path = ""
    c.data.update(batch_size=2, clip_seconds=0.5)
    return read_config(c)


def test_a_batch_has_the_configs_sizes():
    config = shrunk()
    batch = step.a_batch(config, 10)
    assert batch.wav.shape == (2, 8000)
    assert batch.text_ids.shape == (2, config.data.max_text)
    assert batch.text_ids.max() < 10


def test_the_table_states_shares_of_the_whole():
    parts = {"codec": step.Cost(3.0, 2.0, 4e9), "R1": step.Cost(1.0, 1.0), "all": step.Cost(4, 3)}
    table = step.describe(parts, clips=2)
    assert "75%" in table.splitlines()[1]
    assert "25%" in table.splitlines()[2]
    assert "2.00 CPU s a clip" in table


def test_help_is_the_benchmarks_own(capsys):
    with pytest.raises(SystemExit) as end:
        step.main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("--steps", "--config", "part by part"))


@pytest.mark.slow
def test_parts_add_up():
    parts = step.measure(shrunk(), steps=1)
    assert set(parts) == {"codec and acoustic losses", "discriminators", "R1, 1 of 16 steps", "all"}
    assert parts["codec and acoustic losses"].cpu > 0
    assert parts["discriminators"].flops > 0
    total = sum(cost.cpu for name, cost in parts.items() if name != "all")
    assert parts["all"].cpu == pytest.approx(total)
