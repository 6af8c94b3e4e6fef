"""Whether the step recomputes the LM's products follows from what fits."""

import dataclasses
import logging
import math
from types import SimpleNamespace

import pytest

from llmcodec_jax.training import tracing
from llmcodec_jax.training.schedules import Phase
from tests.training.test_step import EVERYTHING, tiny_method

GIB = 2**30


@pytest.fixture
def compiler(monkeypatch):
    """A compiler whose programs take 8 GiB with all products kept, and 3 with them recomputed."""
    asked = []

    def lower(method, *_):
        asked.append(method.lm.remat)
        size = {"never": 8, "always": 3}[method.lm.remat] * GIB
        stats = SimpleNamespace(
            argument_size_in_bytes=GIB, output_size_in_bytes=GIB, alias_size_in_bytes=GIB,
            temp_size_in_bytes=size - GIB, generated_code_size_in_bytes=0,
        )  # fmt: skip
        compiled = SimpleNamespace(memory_analysis=lambda: stats)
        return SimpleNamespace(compile=lambda: compiled), None

    monkeypatch.setattr(tracing, "lower_step", lower)
    return asked


@pytest.mark.parametrize(
    ("remat", "capacity", "recomputes", "tried"),
    [
        ("auto", math.inf, False, ["never"]),
        ("auto", 8 * GIB, False, ["never"]),
        ("auto", 7 * GIB, True, ["never", "always"]),
        ("auto", 1 * GIB, True, ["never", "always"]),  # the last choice is what there is
        ("always", math.inf, True, ["always"]),
        ("never", 1 * GIB, False, ["never"]),
    ],
)
def test_products_are_kept_where_they_fit(compiler, caplog, remat, capacity, recomputes, tried):
    method = tiny_method()
    method = dataclasses.replace(method, lm=dataclasses.replace(method.lm, remat=remat))
    with caplog.at_level(logging.INFO, "llmcodec_jax"):
        step = tracing.compile_step(method, EVERYTHING, None, None, None, None, capacity)
    assert step.recomputes == recomputes
    assert compiler == tried
    assert ("would not fit" in caplog.text) == (len(tried) == 2)


def test_without_the_lm_in_the_phase_there_is_one_compilation(compiler):
    phase = Phase(codec=True, discriminator=False, lm=False)
    tracing.compile_step(tiny_method(), phase, None, None, None, None, 0)
    assert compiler == ["never"]
