"""The loop with a step of two numbers: what is written, saved and said, whatever ends the run."""

import dataclasses
import json
import logging
import os
import signal
import types

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from llmcodec_jax.training import codec_task, distributed, journal, loop, sharding
from llmcodec_jax.training.checkpoint import Checkpoints
from llmcodec_jax.training.config import LogConfig, default_config, read_config
from llmcodec_jax.training.interrupt import Interrupted
from llmcodec_jax.training.resume import CheckpointError
from llmcodec_jax.training.schedules import Phase


@flax.struct.dataclass
class State:
    step: jax.Array
    w: jax.Array
    bad_streak: jax.Array
    params: dict
    batch_stats: dict


def fresh(mesh) -> State:
    state = State(jnp.int32(0), jnp.ones(3), jnp.int32(0), {"codec": {}}, {})
    return jax.device_put(state, sharding.replicated(mesh))


@dataclasses.dataclass(frozen=True)
class Method:
    """What the loop asks of a method; `bad` are steps whose loss is not finite."""

    total_steps: int = 10
    bad: tuple[int, ...] = ()
    max_bad_steps: int = 3
    lm: None = None

    @property
    def schedule(self):
        return self

    @property
    def codec(self):
        return types.SimpleNamespace(sample_rate=16_000)

    def phase(self, step: int) -> Phase:
        return Phase(True, False, False)


def toy_step(state, lm_params, batch, *, method, phase):
    """`train_step`'s contract: a bad step changes nothing but the counters."""
    ok = ~jnp.isin(state.step, jnp.array([-1, *method.bad]))
    streak = jnp.where(ok, 0, state.bad_streak + 1)
    w = jnp.where(ok, state.w * 1.5 + batch, state.w)
    report = {"loss/mel": jnp.where(ok, w.sum(), jnp.nan), "bad_streak": streak}
    return state.replace(step=state.step + 1, w=w, bad_streak=streak), report


class Batches:
    """Endless; `fails_at` raises there."""

    def __init__(self, mesh, start=0, fails_at=None, acts=None):
        self._mesh, self.next, self._fails_at, self._acts = mesh, start, fails_at, acts or {}

    def __next__(self):
        if self.next == self._fails_at:
            raise ZeroDivisionError("the loader broke")
        self._acts.get(self.next, lambda: None)()
        self.next += 1
        return jax.device_put(jnp.float32(self.next), sharding.replicated(self._mesh))

    def state(self):
        return {"batches": self.next}


TASK = loop.Task(toy_step, lambda run, state, step: 10.0 - step, lambda *_: None, ("loss/mel",))
LOG = LogConfig(every=1, eval_every=4, checkpoint_every=3, listen=0, keep=2)
CONFIG = read_config(default_config())


@pytest.fixture
def go(tmp_path, monkeypatch):
    """Trains (or goes on) in one folder -> whether the run reached its end."""
    monkeypatch.setenv("LLMCODEC_CACHE", str(tmp_path / "cache"))

    def train(method=Method(), interrupted=None, **batches):
        mesh = sharding.make_mesh()
        state = fresh(mesh)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        checkpoints = Checkpoints(tmp_path, LOG.keep)
        found = checkpoints.restore(abstract, CONFIG.source, "")
        position = {"batches": 0}
        if found:
            state, position = found
            state = state.replace(bad_streak=0 * state.bad_streak)
        with (
            interrupted or Interrupted() as asked,
            journal.Journal(tmp_path, 10, int(state.step), tensorboard=False, wandb=False) as book,
        ):
            run = loop.Run(
                TASK, method, mesh, tmp_path, LOG, CONFIG, None, "", [], checkpoints, book, asked
            )
            return loop.train(run, state, Batches(mesh, position["batches"], **batches))

    return train


def rows(folder) -> dict[int, float | None]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row["loss/mel"] for row in map(json.loads, lines)}


def steps(folder) -> list[int]:
    return Checkpoints(folder, 2).steps()


def term():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def undisturbed(go, tmp_path):
    """Rows of a whole run."""
    assert go()
    whole = rows(tmp_path)
    for name in ("checkpoints", "metrics.jsonl"):
        (tmp_path / name).rename(tmp_path / f"whole-{name}")
    return whole


def test_a_run_keeps_the_newest_and_the_best(go, tmp_path):
    """Only a checkpoint that was evaluated at its own step can be the best."""
    assert go()
    assert steps(tmp_path) == [9, 10]
    about = json.loads((tmp_path / "checkpoints" / "9" / "about" / "metadata").read_text())
    assert about["mel"] is None
    about = json.loads((tmp_path / "checkpoints" / "10" / "about" / "metadata").read_text())
    assert about["mel"] == 0.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_saved_is_said_after_it_is_saved(go, tmp_path, caplog, undisturbed, number):
    """And a scheduler that asks again while it is being saved changes nothing."""
    caplog.set_level(logging.INFO, "llmcodec_jax")
    finish = Checkpoints.finish

    def asked_again(self):
        if self._pending is not None and number != signal.SIGINT:
            os.kill(os.getpid(), number)
        assert "saved step" not in caplog.text
        return finish(self)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Checkpoints, "finish", asked_again)
        assert not go(acts={4: lambda: os.kill(os.getpid(), number)})
    assert f"{signal.Signals(number).name}: saved step 5" in caplog.text
    assert steps(tmp_path)[-1] == 5
    assert go()
    assert rows(tmp_path) == undisturbed


def test_no_row_is_lost_whatever_step_a_run_is_killed_at(go, tmp_path, undisturbed):
    """The row of a step is written before the checkpoint that begins after it is committed."""
    seen = []

    def at_commit(self, step, *_, **__):
        seen.append((step, sorted(rows(tmp_path))))
        return save(self, step, *_, **__)

    save = Checkpoints.save
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Checkpoints, "save", at_commit)
        assert go()
    assert [step for step, _ in seen] == [3, 6, 9, 10]
    assert all(written == list(range(step)) for step, written in seen)
    assert rows(tmp_path) == undisturbed


def test_a_failure_in_the_loop_commits_the_checkpoint_in_flight(go, tmp_path, undisturbed):
    with pytest.raises(ZeroDivisionError, match="the loader broke"):
        go(fails_at=6)  # right after the save of step 6 was begun
    assert steps(tmp_path) == [3, 6]
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))
    assert go()
    assert rows(tmp_path) == undisturbed


def test_a_save_that_fails_ends_the_run_in_one_error(go, tmp_path, undisturbed):
    writer = ocp.AsyncCheckpointer
    wait, full = writer.wait_until_finished, []

    def out_of_space(self):
        wait(self)
        if full:
            raise ValueError("OUT_OF_RANGE: No space left on device")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(writer, "wait_until_finished", out_of_space)
        with pytest.raises(CheckpointError, match=r"could not be written: .*No space left"):
            go(acts={5: lambda: full.append(True)})
    assert 3 in steps(tmp_path)
    assert go()
    assert rows(tmp_path) == undisturbed


def test_nothing_is_saved_inside_a_run_of_bad_steps(go, tmp_path, caplog):
    """Steps 5 and 6 are bad: the checkpoint due at 6 waits for the first good one after them."""
    assert go(Method(bad=(5, 6)), acts={8: term}) is False
    assert steps(tmp_path) == [3, 8, 9] or steps(tmp_path) == [8, 9]
    caplog.clear()
    (tmp_path / "checkpoints").rename(tmp_path / "before")
    caplog.set_level(logging.INFO, "llmcodec_jax")
    assert go(Method(bad=(4, 5, 6)), acts={5: term}) is False
    assert steps(tmp_path) == [3]
    assert "one of a run of bad steps and was not saved" in caplog.text


def test_after_too_many_bad_steps_the_advice_can_be_followed(go, tmp_path):
    with pytest.raises(loop.NonFiniteError, match=r"3 steps in a row.*the same command goes on"):
        go(Method(bad=tuple(range(5, 10))))
    assert steps(tmp_path) == [3]
    assert go(Method())  # with a lower learning rate, say
    assert steps(tmp_path)[-1] == 10


def test_a_streak_is_not_restored(go, tmp_path):
    """A last step may be bad and is saved; two more after it do not add up to a streak."""
    assert go(Method(total_steps=3, bad=(2,)))
    assert go(Method(bad=(3, 4)))
    assert None in rows(tmp_path).values()


def test_held_out_numbers_that_are_not_finite_end_nothing(tmp_path, monkeypatch, caplog):
    def scored(*_):
        return {"eval/mel": float("nan"), "eval/stft": 1.25}, [], np.zeros(4)

    monkeypatch.setattr(codec_task.heldout, "evaluate", scored)
    monkeypatch.setattr(codec_task, "eval_step", lambda *_, **__: {})
    caplog.set_level(logging.INFO, "llmcodec_jax")
    with journal.Journal(tmp_path, 10, 0, tensorboard=False, wandb=False) as book:
        run = types.SimpleNamespace(
            method=Method(),
            mesh=sharding.make_mesh(),
            heldout=[],
            log=LOG,
            journal=book,
            workdir=tmp_path,
        )
        assert np.isnan(codec_task.evaluate_heldout(run, None, 4))
    assert "held out at step 4: mel nan  stft 1.25" in caplog.text
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["eval/mel"] is None


def test_each_kind_of_silence_has_its_limit(monkeypatch):
    """Short while stepping, long while compiling, evaluating, restoring and saving."""
    given = []
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        distributed.faulthandler, "dump_traceback_later", lambda s, **_: given.append(s)
    )
    for variable in (distributed.STEP_SECONDS, distributed.PAUSE_SECONDS):
        distributed.start_watchdog(variable, {})
        distributed.start_watchdog(variable, {variable: "7"})
    assert given == [600, 7, 3600, 7]


def test_the_runs_own_limits_hold_unless_the_environment_says_else(monkeypatch):
    monkeypatch.setattr(distributed, "_limits", dict(distributed._limits))
    distributed.set_limits(peer=11, step=22, pause=33)
    names = (distributed.PEER_SECONDS, distributed.STEP_SECONDS, distributed.PAUSE_SECONDS)
    assert [distributed.limit(name, {}) for name in names] == [11, 22, 33]
    assert distributed.limit(names[0], {names[0]: "5"}) == 5


def test_goodput_is_the_share_of_time_in_steps(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    config = types.SimpleNamespace(audio_per_step=2.0)
    run = types.SimpleNamespace(config=config, mesh=sharding.make_mesh())
    clock = loop.Clock(run, 0)
    clock.stop()  # compiling
    now[0] += 6
    clock.pause(1)
    now[0] += 3
    assert clock.rates(4, 0.0)["speed/goodput"] == pytest.approx(3 / 9)
    now[0] += 1
    clock.stop()  # evaluating
    clock.stop()  # and saving
    now[0] += 10
    assert clock.goodput() == pytest.approx(4 / 20)
    clock.pause(5)
    now[0] += 4
    assert clock.rates(9, 0.0)["speed/steps_per_second"] == pytest.approx(1)
    assert clock.goodput() == pytest.approx(8 / 24)
