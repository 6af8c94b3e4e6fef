"""metrics.jsonl: no row is lost, whatever ends a run, and lines name their numbers."""

import json
import logging

import numpy as np
import pytest

from llmcodec_jax.ops import files
from llmcodec_jax.training import journal
from llmcodec_jax.training.journal import Journal, read_rows, to_json


def write(workdir, steps, start=0):
    book = Journal(workdir, 100, start, tensorboard=False, wandb=False)
    for step in steps:
        book.row(step, {"loss/mel": np.float32(step)})
    book.close()


def replaced(workdir):
    return files.read_json_lines(workdir / "metrics.replaced.jsonl")


def test_rows_that_come_again_are_replaced_and_kept_aside(tmp_path):
    write(tmp_path, range(6))
    write(tmp_path, range(4, 8), start=4)
    assert [row["step"] for row in read_rows(tmp_path)] == list(range(8))
    assert [row["step"] for row in replaced(tmp_path)] == [4, 5]
    write(tmp_path, [0], start=0)
    assert [row["step"] for row in read_rows(tmp_path)] == [0]
    assert [row["step"] for row in replaced(tmp_path)] == [4, 5, *range(8)]


def test_a_rewrite_that_fails_leaves_every_row(tmp_path, monkeypatch):
    write(tmp_path, range(6))
    before = (tmp_path / "metrics.jsonl").read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", full)
        with pytest.raises(OSError, match="No space"):
            write(tmp_path, [], start=3)
    assert (tmp_path / "metrics.jsonl").read_text() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", "metrics.replaced.jsonl"]


def test_a_torn_line_does_not_spoil_the_next(tmp_path):
    write(tmp_path, range(2))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "loss')
    write(tmp_path, [2, 3], start=2)
    assert [row["step"] for row in read_rows(tmp_path)] == [0, 1, 2, 3]


def test_numbers_that_are_not_finite_are_null():
    assert to_json(np.float32("nan")) is None
    assert to_json([1.0, np.inf]) == [1.0, None]
    assert json.loads(json.dumps(to_json(np.arange(2)))) == [0, 1]


def test_a_line_names_its_numbers(tmp_path, caplog):
    book = Journal(tmp_path, 100, 0, tensorboard=False, wandb=False)
    names = {"loss/mel": 1.5, "loss/ftp/1": 8.66, "grad_norm/encoder": float("nan")}
    with caplog.at_level(logging.INFO, journal.logger.name):
        book.progress(3, names)
    book.close()
    assert "step 3  mel 1.5  ftp/1 8.66  grad_norm/encoder nan" in caplog.text
