"""Asynchronous checkpoints of the whole run: state, data position, config, LM identity.

A checkpoint is `checkpoints/STEP/`: the arrays as Orbax writes them (`state`) and the notes
(`about`, notes.py), committed together. Reading changes nothing on the disk.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from llmcodec_jax.training import distributed, notes, orbax_errors, resume
from llmcodec_jax.training.notes import DamagedCheckpointError, Notes
from llmcodec_jax.training.resume import CheckpointError

logger = logging.getLogger(__name__)

CONFIG_NAME = "run.json"
"""The config in a run folder, as its file and command line gave it."""


class UnavailableCheckpointError(CheckpointError):
    """A checkpoint cannot be read at the moment; nothing says that it is damaged."""


class Checkpoints:
    """The checkpoints below one run folder. Newest `keep` and the best by held-out mel stay."""

    def __init__(
        self, workdir: str | Path, keep: int, may_change: Callable[[str], bool] | None = None
    ):
        """`workdir`: a folder that all processes reach, or gs://BUCKET/FOLDER. `may_change`: which
        options of the config may differ when a run resumes; by default those of a codec's run."""
        self.folder = epath.Path(workdir) / "checkpoints"
        if "://" not in str(workdir):
            self.folder = self.folder.absolute()
        self._keep, self._may_change = keep, may_change
        self._writer: ocp.AsyncCheckpointer | None = None
        self._pending: int | None = None  # the step that is being written
        self._mels: dict[int, float | None] = {}  # of the checkpoints there are
        self._replaced: list[int] = []  # newer than the one that was resumed from

    @classmethod
    def of_run(cls, run: str | Path) -> Checkpoints:
        """Those of a run folder, wherever its config put them; only for reading."""
        note = epath.Path(run) / CONFIG_NAME
        elsewhere = json.loads(note.read_text())["log"]["checkpoint_dir"] if note.exists() else ""
        return cls(elsewhere or run, keep=1)

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, ascending."""
        if not self.folder.exists():
            return []
        found = [path for path in self.folder.iterdir() if path.name.isdigit()]
        if "://" in str(self.folder):  # no folder is renamed there: a file marks the commit
            found = [path for path in found if (path / "commit_success.txt").exists()]
        return sorted(int(path.name) for path in found)

    def save(
        self,
        step: int,
        state,
        position: dict,
        config: dict,
        lm_digest: str,
        mel: float | None = None,
    ) -> None:
        """Starts an asynchronous save, after the one before is committed; see `finish`.

        `position` is the loader's state before the step's batch, `mel` the held-out distance of
        this very state, if it was evaluated. Raises CheckpointError if the save before failed.
        """
        self.finish()
        if step in self._mels:
            return
        self._set_aside(self._replaced)
        self._replaced = []
        leaves = notes.describe_with_checksums(state)
        about = Notes(step, config, lm_digest, position, mel, leaves)
        with self._writing(step):
            self._writer = self._writer or ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
            self._writer.save(
                self.folder / str(step),
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about.to_fields())
                ),
            )
        self._pending, self._mels[step] = step, mel

    def finish(self) -> None:
        """Waits for the save in flight, then lets older checkpoints go.

        Raises CheckpointError if it failed: what was written of it is removed, and the
        checkpoints before are untouched.
        """
        if self._pending is None or self._writer is None:
            return
        step, self._pending = self._pending, None
        with self._writing(step):
            self._writer.wait_until_finished()
        self._let_go()

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        """Orbax's failures as one CheckpointError, after which nothing of `step` is left."""
        try:
            with orbax_errors.without_noise():
                yield
        except MemoryError:
            raise
        except Exception as error:  # it raises again whatever its threads met, of any type
            self._writer = self._pending = None
            self._mels.pop(step, None)
            self._remove_unfinished()
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} could not be written: "
                f"{orbax_errors.reason(error)}. "
                "The checkpoints before it are whole: the same command goes on from the newest"
            ) from error

    def close(self) -> None:
        """Waits for the save in flight; see `finish`."""
        try:
            self.finish()
        finally:
            if self._writer is not None:
                self._writer.close()
            self._writer = None

    def restore(
        self, abstract_state, config: dict, lm_digest: str, *, restart: bool = False
    ) -> tuple[Any, dict] | None:
        """Newest whole checkpoint -> (state, data position), or None in a fresh folder.

        `abstract_state` carries shapes, dtypes and shardings. A damaged checkpoint is passed over
        with a warning for the one before; it is renamed once its place is needed. `restart` moves
        all that is there out of the way. Raises CheckpointError if the config, the state's
        structure or the LM differ, if a checkpoint cannot be read at the moment, or if there are
        checkpoints and none is whole. All processes find the same.
        """
        if restart:
            self._set_all_aside()
            return None
        steps = sorted(self.steps(), reverse=True)
        for step in steps:
            try:
                state, about = distributed.together(
                    lambda step=step: self._read(step, abstract_state, config, lm_digest),
                    DamagedCheckpointError,
                    CheckpointError,
                )
                self._compare(state, about)
            except DamagedCheckpointError as error:
                path = self.folder / str(step)
                logger.warning("checkpoint %s is damaged: %s; trying the one before", path, error)
                continue
            self._begin_after(step)
            resume.log_changes(about.config, config)
            logger.info("resumed from %s", self.folder / str(step))
            return state, about.position
        self._refuse_leftovers(steps)
        self._remove_unfinished()
        return None

    def read_arrays(self, names: tuple[str, ...]) -> tuple[Notes, dict[str, np.ndarray]]:
        """Some trained parameters of the newest whole checkpoint, nothing else being read.

        -> (notes, {name: array [...]}) for the names below `params` that the checkpoint has.
        Raises CheckpointError where no checkpoint is whole.
        """
        for step in sorted(self.steps(), reverse=True):
            try:
                about = self._read_notes(step)
                return about, self._read_some(step, about, names)
            except DamagedCheckpointError as error:
                path = self.folder / str(step)
                logger.warning("checkpoint %s is damaged: %s; trying the one before", path, error)
        raise CheckpointError(f"{self.folder}: no whole checkpoint; is this a run folder?")

    def _read(self, step: int, abstract_state, config, lm_digest) -> tuple[Any, Notes]:
        about = self._read_notes(step)
        path = self.folder / str(step)
        allowed = self._may_change or resume.codec_option_may_change(config)
        resume.check_config(about.config, config, path, allowed)
        if about.lm_digest != lm_digest:
            raise CheckpointError(
                f"{path} was trained against another frozen LM (digest {about.lm_digest}, this "
                f"one is {lm_digest}); point --config.lm.path to it"
            )
        if about.leaves is not None:
            changed = resume.differences(about.config, config)
            resume.check_structure(about.leaves, notes.describe(abstract_state), changed, path)
        arguments = ocp.args.StandardRestore(abstract_state)
        return self._read_state(step, ocp.StandardCheckpointHandler(), arguments), about

    def _read_notes(self, step: int) -> Notes:
        about = Notes.from_text(self._read_text(step, "about"), step)
        if about.leaves is None:  # format 1 kept the position in a file of its own
            try:
                position = json.loads(self._read_text(step, "data"))
            except json.JSONDecodeError as error:
                raise DamagedCheckpointError(f"its data position is not JSON ({error})") from error
            about = Notes(step, about.config, about.lm_digest, position)
        if not about.position or about.position.get("batches", step) != step:
            raise DamagedCheckpointError(f"its data position is {about.position!r}")
        return about

    def _read_text(self, step: int, item: str, name: str = "metadata") -> str:
        path = self.folder / str(step) / item / name
        try:
            return path.read_text()
        except (*orbax_errors.MISSING, UnicodeDecodeError) as error:
            raise DamagedCheckpointError(f"{item}: {error}") from error
        except OSError as error:
            raise UnavailableCheckpointError(f"{path} cannot be read now: {error}") from error

    def _read_state(self, step: int, handler, arguments) -> Any:
        path = self.folder / str(step) / "state"
        try:
            with orbax_errors.without_noise():
                return handler.restore(path, args=arguments)
        except MemoryError:
            raise
        except Exception as error:  # the one call that raises bare Exceptions for damaged files
            reason = orbax_errors.reason(error)
            if orbax_errors.may_pass(error):
                raise UnavailableCheckpointError(f"{path} cannot be read now: {reason}") from error
            raise DamagedCheckpointError(reason) from error

    def _read_some(self, step: int, about: Notes, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        handler = ocp.PyTreeCheckpointHandler()
        path = self.folder / str(step) / "state"
        try:
            saved = handler.metadata(path).tree["params"]
        except (*orbax_errors.MISSING, ValueError, KeyError, TypeError) as error:
            raise DamagedCheckpointError(f"state: {error}") from error
        wanted = {"params": {name: saved[name] for name in names if name in saved}}
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        arguments = ocp.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True)
        found = self._read_state(step, handler, arguments)
        self._compare(jax.tree.map(jax.numpy.asarray, found), about)
        return found["params"]

    def _compare(self, state, about: Notes) -> None:
        """Raises DamagedCheckpointError where the arrays are not those of the notes."""
        found = notes.describe_with_checksums(state)
        for name, leaf in (about.leaves or {}).items():
            if name in found and found[name] != leaf:
                raise DamagedCheckpointError(f"{name} was changed since it was written")
        steps = [x for x in jax.tree_util.tree_leaves_with_path(state) if _is_step(x[0])]
        if steps and int(steps[0][1]) != about.step:
            raise DamagedCheckpointError(f"its state is that of step {int(steps[0][1])}")

    def _begin_after(self, step: int) -> None:
        """Notes what is there when a run goes on from `step`."""
        self._remove_unfinished()
        self._replaced = [other for other in self.steps() if other > step]
        for other in self.steps():
            if other <= step:
                self._mels[other] = self._mel(other)

    def _mel(self, step: int) -> float | None:
        try:
            about = self._read_notes(step)
            if about.leaves is None:
                return json.loads(self._read_text(step, "metrics", "metrics")).get("mel")
        except (DamagedCheckpointError, UnavailableCheckpointError, json.JSONDecodeError):
            return None  # never the best then; it stays while it is among the newest
        return about.mel

    def _let_go(self) -> None:
        """Removes all but the newest `keep` and the best."""
        kept = set(sorted(self._mels)[-self._keep :])
        scored = {s: m for s, m in self._mels.items() if m is not None and math.isfinite(m)}
        kept |= {min(scored, key=scored.__getitem__)} if scored else set()
        for step in self._mels.keys() - kept:
            del self._mels[step]
            self._on_first_process(lambda path=self.folder / str(step): path.rmtree())

    def _set_aside(self, steps: list[int]) -> None:
        """Renames checkpoints that were passed over, so that their steps can be saved anew."""
        for step in steps:
            source = self.folder / str(step)
            target = _free(lambda n, step=step: self.folder / f"unreadable-{step}{n}")
            self._on_first_process(lambda a=source, b=target: a.rename(b))

    def _set_all_aside(self) -> None:
        if self.folder.exists():
            target = _free(lambda n: self.folder.with_name(f"checkpoints-before-restart{n}"))
            logger.info("--restart: %s is now %s", self.folder, target)
            self._on_first_process(lambda: self.folder.rename(target))

    def _refuse_leftovers(self, steps: list[int]) -> None:
        others = [p.name for p in self.folder.glob("unreadable-*")] if self.folder.exists() else []
        if steps or others:
            raise CheckpointError(
                f"{self.folder}: none of the checkpoints {steps or others} can be read; nothing "
                "was changed. Use another --workdir, or --restart to begin again at step 0 (they "
                "are kept beside the new ones)"
            )

    def _remove_unfinished(self) -> None:
        """Saves that a kill or an error cut short: no other process may be writing here."""
        if self.folder.exists():
            for path in self.folder.glob("*.orbax-checkpoint-tmp*"):
                self._on_first_process(lambda path=path: path.rmtree())

    def _on_first_process(self, change: Callable[[], object]) -> None:
        if jax.process_index() == 0:
            change()


def _is_step(path) -> bool:
    return notes.path_name(path) == "step"


def _free(name: Callable[[str], epath.Path]) -> epath.Path:
    """The first of name(""), name("-2"), name("-3"), ... that does not exist."""
    number = 1
    while name("" if number == 1 else f"-{number}").exists():
        number += 1
    return name("" if number == 1 else f"-{number}")
