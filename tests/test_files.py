"""Whole files or none; folders read without silent omissions."""

import os
import re

import pytest

from llmcodec_jax.ops import files


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new" / "report.json"
    with files.replacing(target) as partial:
        partial.write_text("first")
        assert not target.exists()
    with pytest.raises(FileNotFoundError), files.replacing(target) as partial:
        partial.write_bytes((tmp_path / "nothing").read_bytes())
    assert target.read_text() == "first"
    assert os.listdir(target.parent) == ["report.json"]


def test_temporary_names_cannot_be_foreseen_and_fit_any_name(tmp_path):
    target, seen = tmp_path / f"{'a' * 250}.txt", set()
    for _ in range(3):
        with files.replacing(target) as partial:
            seen.add(partial.name)
            partial.write_text("x")
    assert len(seen) == 3
    assert all(re.fullmatch(r"\.[0-9a-f]{16}\.part", name) for name in seen)  # and nothing else
    assert target.read_text() == "x"
    umask = os.umask(0o022)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


def test_what_a_folder_leaves_out_is_told(tmp_path):
    for name in ("a/1.wav", "2.WAV", "notes.txt", "._3.wav", ".cache/4.wav", "elsewhere/5.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "elsewhere").rename(tmp_path.parent / "outside")
    (tmp_path / "linked").symlink_to(tmp_path.parent / "outside")
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nothing.wav")
    (tmp_path / "file.wav").symlink_to(tmp_path / "a" / "1.wav")
    found, left_out = files.find(tmp_path, (".wav",))
    assert [str(path.relative_to(tmp_path)) for path in found] == ["2.WAV", "a/1.wav", "file.wav"]
    assert left_out == [
        "2 hidden files (such as ._3.wav)",
        "1 linked folders, which are not followed (such as linked)",
        "1 links to nothing (such as gone.wav)",
    ]
    (tmp_path.parent / "outside" / "5.wav").unlink()


def test_torn_lines_are_left_out(tmp_path, caplog):
    assert files.read_json_lines(tmp_path / "none.jsonl") == []
    (tmp_path / "rows.jsonl").write_text('{"step": 1}\n{"step": 2}\n[1]\n{"step": 3, "lo')
    assert files.read_json_lines(tmp_path / "rows.jsonl") == [{"step": 1}, {"step": 2}]
    assert "torn" in caplog.text
