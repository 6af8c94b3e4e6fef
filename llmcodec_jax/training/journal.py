"""What a run says about itself: progress bar, metrics.jsonl, TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from tqdm import tqdm

from llmcodec_jax.ops import files

logger = logging.getLogger(__name__)


def to_json(value) -> object:
    """Metric value -> JSON: non-finite numbers become null, so that every line stays valid."""
    value = np.asarray(value)
    if value.ndim:
        return [to_json(v) for v in value]
    number = value.item()
    return None if isinstance(number, float) and not math.isfinite(number) else number


def read_rows(workdir: str | Path) -> list[dict]:
    """All rows of a run's metrics.jsonl; a torn last line is left out."""
    return files.read_json_lines(Path(workdir) / "metrics.jsonl")


def drop_rows(workdir: Path, start: int) -> None:
    """Takes rows at or past step `start`, which come again, out of metrics.jsonl.

    They are kept in metrics.replaced.jsonl. A kill at any moment leaves every row in one of both.
    """
    path, rows = workdir / "metrics.jsonl", read_rows(workdir)
    again = [row for row in rows if row.get("step", start) >= start]
    if not again:
        return
    with (workdir / "metrics.replaced.jsonl").open("a") as replaced:
        replaced.writelines(json.dumps(row) + "\n" for row in again)
    with files.replacing(path) as partial:
        kept = [row for row in rows if row.get("step", start) < start]
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))


def shown_name(name: str) -> str:
    """A metric's name in a line: "loss/ftp/1" is "ftp/1", "grad_norm/encoder" stays whole."""
    return name.removeprefix("loss/").removeprefix("speed/")


def _open_lines(path: Path) -> TextIO:
    """To append whole lines: one that a kill cut short is ended first."""
    torn = path.exists() and path.stat().st_size and path.read_bytes()[-1:] != b"\n"
    file = path.open("a", buffering=1)
    if torn:
        file.write("\n")
    return file


class Journal:
    """Writes on process 0 only; every method is a no-op elsewhere. Never alters training."""

    def __init__(
        self, workdir: Path, total_steps: int, start: int, *, tensorboard: bool, wandb: bool
    ):
        """Rows at or past `start` that an interrupted run left give way: they come again."""
        self._active = jax.process_index() == 0
        self._board = self._wandb = None
        if not self._active:
            return
        workdir.mkdir(parents=True, exist_ok=True)
        drop_rows(workdir, start)
        self._file = _open_lines(workdir / "metrics.jsonl")
        self._bar = tqdm(
            total=total_steps, initial=start, unit="step", dynamic_ncols=True, disable=None
        )
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start)
        if wandb:
            import wandb as client  # ty: ignore[import-not-found]  (optional)

            self._wandb = client.init(dir=str(workdir), name=workdir.name, resume="allow")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def row(self, step: int, scalars: dict) -> None:
        """One line of metrics.jsonl, and the same scalars to the other places."""
        if not self._active:
            return
        values = {name: to_json(value) for name, value in scalars.items()}
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        numbers = {name: v for name, v in values.items() if isinstance(v, (int, float))}
        if self._board:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(numbers, step=step)

    def progress(self, step: int, scalars: dict) -> None:
        """Moves the bar (on a terminal) or logs a line now and then (in a file)."""
        if not self._active:
            return
        shown = {shown_name(name): f"{float(v):.3g}" for name, v in scalars.items()}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)
        if self._bar.disable:
            self._bar.n = step
            logger.info("step %d  %s", step, "  ".join(f"{k} {v}" for k, v in shown.items()))

    def audio(self, name: str, wav: np.ndarray, sample_rate: int, step: int) -> None:
        """float [N] to TensorBoard."""
        if self._active and self._board:
            self._board.add_audio(name, np.clip(wav, -1, 1)[:, None], step, sample_rate)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """uint8 [height, width, 3] to TensorBoard."""
        if self._active and self._board:
            self._board.add_image(name, pixels, step, dataformats="HWC")

    def histogram(self, name: str, counts: np.ndarray, step: int) -> None:
        """How often each code occurs, float [V], to TensorBoard."""
        if self._active and self._board and counts.sum() > 0:
            codes = np.repeat(np.arange(len(counts)), np.minimum(counts, 10_000).astype(int))
            bins: Any = min(512, len(counts))  # annotated as a name alone
            self._board.add_histogram(name, codes, step, bins=bins)

    def close(self) -> None:
        """Flushes everything."""
        if not self._active:
            return
        self._bar.close()
        self._file.close()
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish()
