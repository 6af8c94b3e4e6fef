"""The mesh, and who lives where: golden shardings of the shipped pod configs, from shapes alone.

After a deliberate change: python -m tests.multidevice.test_sharding
"""

import functools
import importlib
import json
import math
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from llmcodec_jax.compiling import program
from llmcodec_jax.errors import UsageError
from llmcodec_jax.training import sharding
from llmcodec_jax.training.config import read_config
from llmcodec_jax.training.method import Method
from llmcodec_jax.training.optim import path_name
from llmcodec_jax.training.state import init_state

GOLDEN = Path(__file__).with_name("shardings.json")
SHIPPED = {"base": 16, "v5e_16": 16, "v5p_8": 4, "v6e_16": 16, "v6e_16_large": 16, "tpu7x_8": 8}


@functools.lru_cache(maxsize=1)
def shapes():
    """(state, LM) of the paper's scale: the pod configs differ in batch and mesh alone."""
    config = read_config(importlib.import_module("configs.base").get_config())
    lm_config, lm = program.abstract_lm(config)
    method = Method.from_config(config, lm_config)
    return jax.eval_shape(lambda lm: init_state(method, lm, 0), lm), lm


def summary(name: str, devices: int) -> dict:
    """What is split and how; bytes of everything per device."""
    config = importlib.import_module(f"configs.{name}").get_config()
    sizes = [devices if n == -1 else n for n in (config.mesh[a] for a in sharding.AXES)]
    mesh = AbstractMesh(tuple(sizes), sharding.AXES)
    out = {"mesh": dict(mesh.shape)}
    for part, tree, rules in zip(
        ("state", "lm"), shapes(), (sharding.STATE_RULES, sharding.LM_RULES), strict=True
    ):
        placed = sharding.shardings(tree, mesh, rules)
        leaves = zip(
            jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(placed), strict=True
        )
        split, size = {}, 0
        for (path, leaf), where in leaves:
            local = where.shard_shape(leaf.shape)
            size += math.prod(local) * leaf.dtype.itemsize
            if local != leaf.shape:
                split[path_name(path)] = f"{list(leaf.shape)} {where.spec}"
        out[part] = {"mb_per_device": round(size / 1e6), "split": split}
    return out


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_are_sharded_as_reviewed(name):
    assert summary(name, SHIPPED[name]) == json.loads(GOLDEN.read_text())[name]


def test_every_large_array_is_split():
    state, lm = shapes()
    mesh = AbstractMesh((1, 16, 1), sharding.AXES)
    for tree, rules in ((state, sharding.STATE_RULES), (lm, sharding.LM_RULES)):
        placed = jax.tree.leaves(sharding.shardings(tree, mesh, rules))
        for leaf, where in zip(jax.tree.leaves(tree), placed, strict=True):
            if math.prod(leaf.shape) * leaf.dtype.itemsize > 100e6:
                assert where.shard_shape(leaf.shape) != leaf.shape, leaf.shape


def test_an_axis_of_minus_one_takes_what_is_left():
    device = jax.devices()[0]
    assert sharding.make_mesh(1, -1, 1, [device] * 8).shape["fsdp"] == 8
    assert dict(sharding.make_mesh(-1, 2, 2, [device] * 8).shape) == dict(data=2, fsdp=2, tensor=2)
    with pytest.raises(ValueError, match="on 8 devices"):
        sharding.make_mesh(3, 1, 1, [device] * 8)
    with pytest.raises(ValueError, match="at most one"):
        sharding.make_mesh(-1, -1, 1, [device] * 8)


def test_what_does_not_divide_is_replicated():
    mesh = AbstractMesh((1, 8, 1), sharding.AXES)
    tree = {"ftp_heads": np.zeros((2, 20, 4)), "audio_embedding": np.zeros((20, 16))}
    placed = sharding.shardings(tree, mesh, sharding.STATE_RULES)
    assert placed["ftp_heads"].is_fully_replicated
    assert placed["audio_embedding"].shard_shape((20, 16)) == (20, 2)


def test_devices_that_share_a_clip_must_be_of_one_process():
    def owned(*processes):
        devices = [types.SimpleNamespace(process_index=p) for p in processes]
        return np.array(devices, object).reshape(-1, 1, 2)

    sharding.check_processes(owned(0, 0, 1, 1))
    with pytest.raises(UsageError, match=r"mesh\.tensor=2 spans processes"):
        sharding.check_processes(owned(0, 1, 0, 1))
    with pytest.raises(UsageError, match=r"hold \[2, 1\] shares"):
        sharding.check_processes(owned(0, 0, 0, 0, 1, 1))


if __name__ == "__main__":
    golden = {name: summary(name, devices) for name, devices in SHIPPED.items()}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
