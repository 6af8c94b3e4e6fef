"""Checkpoints: round trip, every kind of damage, changed configs, another language model."""

import errno
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from llmcodec_jax.training import checkpoint, notes
from llmcodec_jax.training.checkpoint import Checkpoints
from llmcodec_jax.training.resume import CheckpointError, differences

CONFIG = {
    "seed": 0,
    "codec": {"width": 8},
    "optim": {"accumulate": 1},
    "log": {"every": 5},
    "weights": {"sa_cosine": 0.0},
    "data": {"threads": 2, "buffer": 4, "eval_fraction": 0.02, "eval_batch_size": 8},
}


def a_state(value: float):
    rng = np.random.default_rng(int(value))
    return {
        "w": jnp.asarray(rng.normal(size=(40, 30)), jnp.float32),
        "half": jnp.asarray(rng.normal(size=(7,)), jnp.bfloat16),
        "step": jnp.int32(value),
        "none": None,
        "empty": {},
    }


MELS = {1: 1.0, 2: 0.5, 3: 2.0}


def saved(folder, steps=(1, 2, 3), keep=5, config=CONFIG, state=a_state, mels=MELS):
    checkpoints = Checkpoints(folder, keep)
    restored(checkpoints, config=config) if checkpoints.steps() else None
    for step in steps:
        checkpoints.save(step, state(step), {"batches": step}, config, "abc", mels.get(step))
    checkpoints.close()


def restored(checkpoints, config=CONFIG, digest="abc", like=a_state, **options):
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), like(0)
    )
    return checkpoints.restore(abstract, config, digest, **options)


def restore(folder, **options):
    return restored(Checkpoints(folder, 5), **options)


def kept(folder) -> list[int]:
    return Checkpoints(folder, 5).steps()


def test_state_and_data_position_come_back(tmp_path):
    saved(tmp_path)
    state, position = restore(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, state, a_state(3))
    assert position == {"batches": 3}


def test_a_fresh_folder_restores_nothing(tmp_path):
    assert restore(tmp_path) is None


# Damage: one file at a time, in every way.


def damages(data: bytes, other: bytes):
    """Ways in which a file's content can come to harm; None deletes it."""
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else b"x"
    return {
        "truncated": data[:middle],
        "emptied": b"",
        "zeroed": bytes(len(data)),
        "deleted": None,
        "one bit flipped": flipped,
        "of another step": other,
    }


def test_any_one_damaged_file_is_noticed_or_harmless(tmp_path, caplog, capfd):
    """Never a crash, never another state: the one before, or the very state that was saved."""
    saved(tmp_path)
    newest = tmp_path / "checkpoints" / "3"
    noticed = set()
    files = [path for path in sorted(newest.rglob("*")) if path.is_file()]
    assert len(files) >= 10
    for path in files:
        whole = path.read_bytes()
        other = tmp_path / "checkpoints" / "2" / path.relative_to(newest)
        for way, content in damages(whole, other.read_bytes() if other.exists() else b"?").items():
            path.unlink() if content is None else path.write_bytes(content)
            caplog.clear()
            with caplog.at_level(logging.WARNING, "llmcodec_jax"):
                state, position = restore(tmp_path)
            if position == {"batches": 2}:
                noticed.add((path.parent.name, way))
                assert "checkpoints/3 is damaged" in caplog.text
                assert len(caplog.messages) == 1
            jax.tree.map(np.testing.assert_array_equal, state, a_state(position["batches"]))
            path.write_bytes(whole)
    assert len(noticed) >= 20
    assert {("about", way) for way in damages(b"x", b"")} <= noticed
    assert "Traceback" not in capfd.readouterr().err
    assert restore(tmp_path)[1] == {"batches": 3}, "reading changed something"


@pytest.mark.parametrize("text", ["{}", "[]", '{"config": {}}', "\udcff"])
def test_notes_that_say_nothing_are_damage(tmp_path, text):
    saved(tmp_path)
    about = tmp_path / "checkpoints" / "3" / "about" / "metadata"
    about.write_bytes(text.encode(errors="surrogateescape"))
    assert restore(tmp_path)[1] == {"batches": 2}


def test_the_state_of_another_step_is_damage(tmp_path, caplog):
    saved(tmp_path)
    folder = tmp_path / "checkpoints"
    shutil.rmtree(folder / "3" / "state")
    shutil.copytree(folder / "1" / "state", folder / "3" / "state")
    with caplog.at_level(logging.WARNING, "llmcodec_jax"):
        assert restore(tmp_path)[1] == {"batches": 2}
    shutil.rmtree(folder / "3")
    shutil.copytree(folder / "1", folder / "3")
    assert restore(tmp_path)[1] == {"batches": 2}
    assert "notes are those of step 1" in caplog.text or "step 1" in caplog.text


def test_a_damaged_step_is_saved_anew_and_the_old_one_kept_aside_twice(tmp_path):
    for _ in range(2):
        saved(tmp_path)
        (tmp_path / "checkpoints" / "3" / "about" / "metadata").write_text("{")
        assert restore(tmp_path)[1] == {"batches": 2}
    saved(tmp_path, steps=(3,))
    assert restore(tmp_path)[1] == {"batches": 3}
    aside = sorted(p.name for p in (tmp_path / "checkpoints").glob("unreadable-*"))
    assert aside == ["unreadable-3", "unreadable-3-2"]


def test_only_damaged_checkpoints_is_an_error_that_changes_nothing(tmp_path):
    saved(tmp_path, steps=(1,))
    (tmp_path / "checkpoints" / "1" / "about" / "metadata").write_text("{")
    before = sorted(tmp_path.rglob("*"))
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"none of the checkpoints \[1\].*--restart"):
            restore(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_restart_begins_anew_and_keeps_what_was_there(tmp_path):
    saved(tmp_path, steps=(1,))
    for number in ("", "-2"):
        assert restore(tmp_path, restart=True) is None
        assert (tmp_path / f"checkpoints-before-restart{number}" / "1").is_dir()
        saved(tmp_path, steps=(1,))


def test_a_passing_error_sets_nothing_aside(tmp_path, monkeypatch):
    saved(tmp_path)
    before = sorted(tmp_path.rglob("*"))

    def no_read(self, *_):
        raise OSError(errno.EIO, "Input/output error", str(self))

    def no_restore(self, *_, **__):
        raise Exception("while reading") from ValueError("UNAVAILABLE: try again")  # as Orbax does

    with monkeypatch.context() as patched:
        patched.setattr(type(epath.Path(tmp_path)), "read_text", no_read)
        with pytest.raises(CheckpointError, match=r"cannot be read now.*Input/output error"):
            restore(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.ocp.StandardCheckpointHandler, "restore", no_restore)
        with pytest.raises(CheckpointError, match="cannot be read now: UNAVAILABLE"):
            restore(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    assert restore(tmp_path)[1] == {"batches": 3}


def test_checksums_notice_any_bit_and_any_exchange():
    def sums(x):
        return notes.describe_with_checksums({"x": jnp.asarray(x)})["x"].checksum

    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float16, np.int32, np.uint8, np.bool_):
        x = rng.integers(0, 2, (5, 6)).astype(dtype)
        assert sums(x) == sums(x.copy())
        assert sums(x) != sums(x.T.copy())
        raw = bytearray(x.tobytes())
        raw[7] ^= 1
        assert sums(np.frombuffer(bytes(raw), dtype).reshape(x.shape)) != sums(x)
    assert sums(np.zeros((2, 3), np.float32)) != sums(-np.zeros((2, 3), np.float32))


def test_checksums_of_parts_add_up_to_that_of_the_whole():
    """However a mesh splits an array."""
    x = np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)
    whole = notes.checksum(x, (slice(None),) * 3, x.shape)
    for split in ((slice(0, 2), slice(2, 6)), (slice(0, 6),)):
        for other in ((slice(0, 1), slice(1, 4)), (slice(None),)):
            index = [(a, b, slice(None)) for a in split for b in other]
            parts = [notes.checksum(x[where], where, x.shape) for where in index]
            assert np.sum(parts, dtype=np.uint32) == whole
    scalar = np.float32(3)
    assert notes.checksum(np.asarray(scalar), (), ()) != notes.checksum(np.zeros(()), (), ())


# Configs.


def test_a_run_on_a_mixture_of_sources_resumes(tmp_path):
    sources = (("folder:a", 0.5, "speech"), ("folder:b", 0.5, "music"))
    config = CONFIG | {"data": {"sources": sources}}
    saved(tmp_path, config=config)
    assert restore(tmp_path, config=config)
    other = (("folder:a", 0.4, "speech"), ("folder:b", 0.6, "music"))
    with pytest.raises(CheckpointError, match=r"data\.sources"):
        restore(tmp_path, config=CONFIG | {"data": {"sources": other}})


def changed(**fields):
    config = json.loads(json.dumps(CONFIG))
    for name, value in fields.items():
        section, _, field = name.partition("__")
        config[section][field] = value
    return config


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("codec__width", 16, r"codec\.width: 8 in the checkpoint, 16 now"),
        ("data__eval_fraction", 0.03, r"data\.eval_fraction: 0.02 in the checkpoint, 0.03 now"),
    ],
)
def test_a_config_that_breaks_the_state_is_refused_by_name(tmp_path, field, value, message):
    saved(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        restore(tmp_path, config=changed(**{field: value}))


@pytest.mark.parametrize(
    "field", ["log__every", "data__threads", "data__buffer", "data__eval_batch_size"]
)
def test_a_harmless_change_is_only_logged(tmp_path, caplog, field):
    saved(tmp_path)
    with caplog.at_level(logging.WARNING, "llmcodec_jax"):
        assert restore(tmp_path, config=changed(**{field: 7})) is not None
    assert f"{field.replace('__', '.')} was" in caplog.text


def test_a_state_of_other_arrays_is_refused_and_nothing_set_aside(tmp_path):
    """Whatever field decides it, a field that nobody thought of included."""

    def with_bank(value):
        return a_state(value) | {"bank": jnp.zeros((3, 2)), "half": jnp.zeros((9,), jnp.bfloat16)}

    saved(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for _ in range(2):
        with pytest.raises(CheckpointError) as found:
            restore(tmp_path, config=changed(weights__sa_cosine=0.1), like=with_bank)
        assert "bank: absent in the checkpoint, float32[3, 2] now" in str(found.value)
        assert "half: bfloat16[7] in the checkpoint, bfloat16[9] now" in str(found.value)
        assert "weights.sa_cosine: 0.0 in the checkpoint, 0.1 now" in str(found.value)
    assert sorted(tmp_path.rglob("*")) == before
    assert restore(tmp_path)[1] == {"batches": 3}


def test_another_language_model_is_refused(tmp_path):
    saved(tmp_path)
    with pytest.raises(CheckpointError, match="another frozen LM"):
        restore(tmp_path, digest="xyz")


def test_differences_are_flat_and_blind_to_tuples():
    assert differences({"a": {"b": [1, 2]}}, {"a": {"b": (1, 2)}}) == {}
    assert differences({"a": {"b": 1}}, {"a": {"c": 2}}) == {"a.b": (1, None), "a.c": (None, 2)}


# What is kept.


def test_newest_and_best_are_kept(tmp_path):
    saved(tmp_path, steps=(1, 2, 3, 4, 5), keep=2)
    assert kept(tmp_path) == [2, 4, 5]


def test_restarts_keep_no_more_than_one_run_does(tmp_path):
    for first in range(1, 12, 2):
        saved(tmp_path, steps=(first, first + 1), keep=2, mels={1: 1.0, 2: 0.5, 7: 0.6})
    assert kept(tmp_path) == [2, 11, 12]


@pytest.mark.parametrize("mel", [None, float("nan"), float("inf")])
def test_a_checkpoint_without_a_finite_metric_is_never_the_best(tmp_path, mel):
    saved(tmp_path, steps=range(1, 7), keep=2, mels={1: mel, 2: 0.5, 3: mel, 4: mel, 5: mel})
    assert kept(tmp_path) == [2, 5, 6]
    saved(tmp_path, steps=(7, 8), keep=2, mels={7: mel})
    assert kept(tmp_path) == [2, 7, 8]


def test_what_a_kill_left_half_written_goes_with_the_next_start(tmp_path):
    saved(tmp_path)
    (tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp-1700").mkdir()
    assert restore(tmp_path)[1] == {"batches": 3}
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))


FULL = """
import resource, signal, sys
sys.path.insert(0, {root!r})
from llmcodec_jax.training import command_line
from llmcodec_jax.training.checkpoint import Checkpoints, CheckpointError
from tests.training.test_checkpoint import a_state, CONFIG
command_line.setup_logging()
checkpoints = Checkpoints({folder!r}, 5)
checkpoints.save(1, a_state(1), {{"batches": 1}}, CONFIG, "abc")
checkpoints.finish()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as a full disk: writing fails part of the way
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
try:
    checkpoints.save(2, a_state(2), {{"batches": 2}}, CONFIG, "abc")
    checkpoints.close()
except CheckpointError as error:
    print("refused:", error)
"""


def test_a_full_disk_is_one_line_and_leaves_the_checkpoints_before(tmp_path):
    script = FULL.format(root=str(Path(__file__).parents[2]), folder=str(tmp_path))
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert "refused: checkpoint" in result.stdout
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr == ""
    assert restore(tmp_path)[1] == {"batches": 1}
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]


# Files of earlier versions.


def first_format(folder: Path) -> None:
    """Rewrites checkpoints as they were written before there were checksums."""
    for path in (folder / "checkpoints").iterdir():
        about = json.loads((path / "about" / "metadata").read_text())
        for item, content in {
            "about": {name: about[name] for name in ("config", "lm_digest")},
            "data": about["position"],
            "metrics": {"mel": about["mel"]},
        }.items():
            (path / item).mkdir(exist_ok=True)
            name = "metrics" if item == "metrics" else "metadata"
            (path / item / name).write_text(json.dumps(content))


def test_checkpoints_of_the_first_format_are_resumed(tmp_path):
    saved(tmp_path)
    first_format(tmp_path)
    state, position = restore(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, state, a_state(3))
    assert position == {"batches": 3}
    saved(tmp_path, steps=(4, 5, 6), keep=2)
    assert kept(tmp_path) == [2, 5, 6]


def test_the_first_format_has_its_damage_noticed_too(tmp_path):
    saved(tmp_path)
    first_format(tmp_path)
    newest = tmp_path / "checkpoints" / "3"
    (newest / "data" / "metadata").write_text("{}")
    assert restore(tmp_path)[1] == {"batches": 2}
    shutil.rmtree(newest)
    shutil.copytree(tmp_path / "checkpoints" / "1", newest)
    (newest / "data" / "metadata").write_text('{"batches": 3}')
    assert restore(tmp_path)[1] == {"batches": 2}


def test_some_arrays_are_read_alone(tmp_path):
    def trained(step):
        return {"step": jnp.int32(step), "params": {"a": jnp.full((3,), step), "b": jnp.ones(2)}}

    saved(tmp_path, state=trained)
    about, found = Checkpoints(tmp_path, 1).read_arrays(("a", "c"))
    assert about.step == 3
    assert list(found) == ["a"]
    np.testing.assert_array_equal(found["a"], np.full((3,), 3))


def test_a_runs_checkpoints_are_found_wherever_its_config_put_them(tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    saved(elsewhere)
    saved(run, steps=(1,))
    assert Checkpoints.of_run(run).steps() == [1]
    (run / checkpoint.CONFIG_NAME).write_text(
        json.dumps({"log": {"checkpoint_dir": str(elsewhere)}})
    )
    assert Checkpoints.of_run(run).steps() == [1, 2, 3]
    assert Checkpoints.of_run(elsewhere).steps() == [1, 2, 3]
