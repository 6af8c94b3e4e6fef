"""What compile_check said of the shipped slices, and what of it holds without libtpu.

After a deliberate change, with a report made by compile_check for each configuration:
python -m tests.compiling.test_compile_reports v5e_16=report.json ...
"""

import importlib
import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from llmcodec_jax.compiling import program
from llmcodec_jax.hardware import chips, costs
from llmcodec_jax.training import sharding
from tests.multidevice.test_sharding import shapes

GOLDEN = Path(__file__).with_name("compile_reports.json")
REPORTS = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}


def summary(report: dict) -> dict:
    """The part of a report that a reader wants to see change in review, rounded."""
    (phase,) = report["phases"]
    kinds = {}
    for kind in costs.KINDS:
        rows = [c for c in phase["collectives"] if c["kind"] == kind and not c["rare"]]
        if rows:
            largest = max(rows, key=lambda c: c["bytes"])
            kinds[kind] = {
                "times": sum(c["times"] for c in rows),
                "sent_mb": round(sum(c["sent"] for c in rows) / 1e6),
                "largest": largest["shape"],
                "largest_mb": round(largest["bytes"] / 1e6, 1),
            }
    seconds = phase["seconds"]
    return {
        **{name: report[name] for name in ("topology", "mesh", "global_batch", "fits")},
        "capacity_gib": round(report["capacity_bytes"] / chips.GIB, 1),
        "memory_gib": {
            kind: round(size / chips.GIB, 2)
            for kind, size in phase["memory_bytes_per_device"].items()
        },
        "milliseconds": {
            name: round(1e3 * seconds[name])
            for name in ("compute", "memory", "interconnect", "overlapped")
        },
        "binds": seconds["binds"],
        "exchanges": kinds,
    }


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_is_of_the_config_as_it_is(name):
    """Batch, mesh and what the state takes on each device, recomputed from shapes."""
    report = REPORTS[name]
    config = importlib.import_module(f"configs.{name}").get_config()
    mesh = AbstractMesh(tuple(report["mesh"].values()), tuple(report["mesh"]))
    asked = {axis: size for axis, size in config.mesh.items() if size != -1}
    assert asked.items() <= report["mesh"].items()
    assert config.data.batch_size == report["global_batch"]
    state, lm = shapes()
    state = sharding.placed(state, sharding.shardings(state, mesh, sharding.STATE_RULES))
    lm = sharding.placed(lm, sharding.shardings(lm, mesh, sharding.LM_RULES))
    parts = {
        "frozen_lm": lm,
        "parameters": (state.params, state.discriminator),
        "optimiser": (state.opt_state, state.discriminator_opt_state),
        "bank": state.bank,
    }
    for kind, tree in parts.items():
        size = program.per_device(tree) / chips.GIB
        assert round(size, 2) == report["memory_gib"][kind], kind


@pytest.mark.parametrize("name", REPORTS)
def test_every_shipped_slice_has_room(name):
    report = REPORTS[name]
    assert report["fits"]
    assert report["memory_gib"]["total"] < report["capacity_gib"]


@pytest.mark.parametrize("name", REPORTS)
def test_neither_logits_nor_the_whole_lm_are_gathered(name):
    """[clips, frames, codes] in one piece, or anything as large as two of the LM's layers."""
    report = REPORTS[name]
    config = importlib.import_module(f"configs.{name}").get_config()
    frames = round(config.data.clip_seconds * config.codec.sample_rate / config.codec.hop)
    layer = shapes()[1]["blocks"]
    layer_mb = sum(np.prod(x.shape[1:]) * x.dtype.itemsize for x in jax.tree.leaves(layer)) / 1e6
    for kind in ("all-gather", "all-to-all"):
        item = report["exchanges"].get(kind)
        if item:
            sizes = [int(n) for n in re.findall(r"\d+", item["largest"].partition("[")[2])]
            assert item["largest_mb"] < 2 * layer_mb, (kind, item)
            assert not {frames, config.codec.codebook_size} <= set(sizes), (kind, item)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        name, _, path = argument.partition("=")
        REPORTS[name] = summary(json.loads(Path(path).read_text()))
    GOLDEN.write_text(json.dumps(REPORTS, indent=1) + "\n")
