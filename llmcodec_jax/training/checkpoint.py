"""Asynchronous Orbax checkpoints of the whole run: state, data position, config, LM identity."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

logger = logging.getLogger(__name__)

STATE_FIELDS = re.compile(
    r"seed|codec\.(?!dtype|remat).*|discriminators\.(?!dtype|loss|r1_every).*"
    r"|lm\.(horizons|bank|config\..*)|bridge\.logits"
    r"|optim\.groups\..*\.(pattern|optimizer)|data\.(?!workers|prefetch|eval_).*"
)
"""Config fields that shape the state or the data order: a run cannot resume across a change."""

UNREADABLE = (ValueError, KeyError, OSError)
"""What Orbax raises for truncated, incomplete or missing checkpoint files."""


class CheckpointError(RuntimeError):
    """A run folder that cannot be resumed; the message says what to change."""


def flatten(config: dict, prefix: str = "") -> dict[str, Any]:
    """Nested dict -> {"a.b.c": leaf}."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = _as_saved(value)
    return flat


def _as_saved(value: Any) -> Any:
    """Tuples as the lists that JSON brings back, at any depth: a mixture's parts are tuples."""
    return [_as_saved(v) for v in value] if isinstance(value, tuple | list) else value


def differences(saved: dict, current: dict) -> dict[str, tuple[Any, Any]]:
    """Fields whose values differ: {"a.b.c": (saved, current)}."""
    old, new = flatten(saved), flatten(current)
    return {
        name: (old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    }


def check_config(saved: dict, current: dict, folder: Path) -> None:
    """Raises CheckpointError when a difference would break the state; logs the harmless ones."""
    changed = differences(saved, current)
    breaking = {name: values for name, values in changed.items() if STATE_FIELDS.fullmatch(name)}
    if breaking:
        lines = [
            f"  {name}: {old!r} in the checkpoint, {new!r} now"
            for name, (old, new) in breaking.items()
        ]
        raise CheckpointError(
            f"{folder} was written by a run whose config differs where the state depends on it:\n"
            + "\n".join(lines)
            + "\nUse another --workdir, or restore these fields."
        )
    for name, (old, new) in changed.items():
        logger.warning("config changed since the checkpoint: %s was %r, now %r", name, old, new)


class Checkpoints:
    """The checkpoints below one run folder. Newest `keep` and the best by held-out mel stay."""

    def __init__(self, workdir: str | Path, keep: int):
        """`workdir`: a folder that all processes reach, or gs://BUCKET/FOLDER."""
        self.folder = epath.Path(workdir) / "checkpoints"
        best = BestN(get_metric_fn=lambda metrics: metrics["mel"], reverse=True, n=1)
        self._manager = ocp.CheckpointManager(
            self.folder if "://" in str(workdir) else self.folder.resolve(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
                enable_async_checkpointing=True,
            ),
        )

    def save(self, step: int, state, data_state: dict, config: dict, lm_digest: str, mel: float):
        """Starts an asynchronous save; `data_state` is the loader's before the step's batch."""
        if step in self._manager.all_steps():
            return
        about = {"config": config, "lm_digest": lm_digest}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=ocp.args.JsonSave(data_state),
                about=ocp.args.JsonSave(about),
            ),
            metrics={"mel": mel},
        )

    def restore(self, abstract_state, config: dict, lm_digest: str) -> tuple[Any, dict] | None:
        """Newest readable checkpoint -> (state, data_state), or None in a fresh folder.

        `abstract_state` carries shapes, dtypes and shardings. An unreadable newest checkpoint is
        set aside with a warning and the one before is used. Raises CheckpointError if the config
        or the LM changed, or if checkpoints exist and none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                about = self._read(step, about=ocp.args.JsonRestore())["about"]
            except UNREADABLE as error:
                self._set_aside(step, error)
                continue
            check_config(about["config"], config, self.folder)
            if about["lm_digest"] != lm_digest:
                raise CheckpointError(
                    f"{self.folder} was trained against another frozen LM (digest "
                    f"{about['lm_digest']}, this one is {lm_digest}); point --config.lm.path to it"
                )
            try:
                read = self._read(
                    step,
                    state=ocp.args.StandardRestore(abstract_state),
                    data=ocp.args.JsonRestore(),
                )
            except UNREADABLE as error:
                self._set_aside(step, error)
                continue
            logger.info("resumed from %s", self.folder / str(step))
            return read["state"], read["data"]
        if steps:
            raise CheckpointError(f"{self.folder}: none of the checkpoints {steps} can be read")
        return None

    def close(self):
        """Waits for saves in flight."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _read(self, step: int, **items):
        return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _set_aside(self, step: int, error: Exception):
        """Moves an unreadable checkpoint out of the series, so that its step can be saved anew."""
        logger.warning(
            "checkpoint %s is unreadable (%s); using the one before",
            self.folder / str(step),
            str(error).splitlines()[0][:200],
        )
        if jax.process_index() == 0:
            source = self.folder / str(step)
            source.rename(source.with_name(f"unreadable-{step}"))
        self._manager.reload()
