"""Checkpoints: round trip, damaged files, changed configs, another language model."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax.training.checkpoint import CheckpointError, Checkpoints, differences

CONFIG = {"seed": 0, "codec": {"width": 8}, "optim": {"accumulate": 1}, "log": {"every": 5}}


def a_state(value: float):
    return {"w": jnp.full((4, 3), value), "step": jnp.int32(value), "none": None, "empty": {}}


def saved(folder, steps=(1, 2, 3), keep=5, config=CONFIG):
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        mel = {1: 1.0, 2: 0.5, 3: 2.0}.get(step, 3.0)
        checkpoints.save(step, a_state(step), {"batches": step}, config, "abc", mel)
    checkpoints.close()


def restore(folder, config=CONFIG, digest="abc"):
    checkpoints = Checkpoints(folder, 5)
    shapes = jax.eval_shape(lambda: a_state(0))
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
        ),
        shapes,
    )
    try:
        return checkpoints.restore(placed, config, digest)
    finally:
        checkpoints.close()


def test_state_and_data_position_come_back(tmp_path):
    saved(tmp_path)
    state, position = restore(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, state, a_state(3))
    assert position == {"batches": 3}


def test_a_fresh_folder_restores_nothing(tmp_path):
    assert restore(tmp_path) is None


def test_a_run_on_a_mixture_of_sources_resumes(tmp_path):
    sources = (("folder:a", 0.5, "speech"), ("folder:b", 0.5, "music"))
    config = CONFIG | {"data": {"sources": sources}}
    saved(tmp_path, config=config)
    assert restore(tmp_path, config)
    other = (("folder:a", 0.4, "speech"), ("folder:b", 0.6, "music"))
    with pytest.raises(CheckpointError, match=r"data\.sources"):
        restore(tmp_path, CONFIG | {"data": {"sources": other}})


def test_newest_and_best_are_kept(tmp_path):
    saved(tmp_path, steps=(1, 2, 3, 4, 5), keep=2)
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    assert kept == [2, 4, 5]


def damage_arrays(folder):
    for path in (folder / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:10])


def damage_metadata(folder):
    (folder / "state" / "_METADATA").write_text("")


def damage_about(folder):
    for path in (folder / "about").iterdir():
        path.write_text("{")


@pytest.mark.parametrize("damage", [damage_arrays, damage_metadata, damage_about])
def test_a_damaged_newest_checkpoint_falls_back(tmp_path, damage, caplog):
    saved(tmp_path)
    damage(tmp_path / "checkpoints" / "3")
    with caplog.at_level(logging.WARNING, "llmcodec_jax"):
        state, position = restore(tmp_path)
    assert position == {"batches": 2}
    assert int(state["step"]) == 2
    assert "checkpoints/3 is unreadable" in caplog.text
    saved(tmp_path, steps=(3,))  # the step can be saved anew
    assert restore(tmp_path)[1] == {"batches": 3}


def test_only_damaged_checkpoints_is_an_error(tmp_path):
    saved(tmp_path, steps=(1,))
    damage_arrays(tmp_path / "checkpoints" / "1")
    with pytest.raises(CheckpointError, match="none of the checkpoints"):
        restore(tmp_path)


def test_a_config_that_breaks_the_state_is_refused_by_name(tmp_path):
    saved(tmp_path)
    changed = json.loads(json.dumps(CONFIG))
    changed["codec"]["width"] = 16
    with pytest.raises(CheckpointError, match=r"codec\.width: 8 in the checkpoint, 16 now"):
        restore(tmp_path, changed)


def test_a_harmless_change_is_only_logged(tmp_path, caplog):
    saved(tmp_path)
    with caplog.at_level(logging.WARNING, "llmcodec_jax"):
        assert restore(tmp_path, {**CONFIG, "log": {"every": 7}}) is not None
    assert "log.every was 5, now 7" in caplog.text


def test_another_language_model_is_refused(tmp_path):
    saved(tmp_path)
    with pytest.raises(CheckpointError, match="another frozen LM"):
        restore(tmp_path, digest="xyz")


def test_differences_are_flat_and_blind_to_tuples():
    assert differences({"a": {"b": [1, 2]}}, {"a": {"b": (1, 2)}}) == {}
    assert differences({"a": {"b": 1}}, {"a": {"c": 2}}) == {"a.b": (1, None), "a.c": (None, 2)}
