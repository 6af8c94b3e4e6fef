"""Checkpoint files from before PyTorch 1.6: one stream of pickles and storages."""

import pickle
import struct

import numpy as np
import pytest

from llmcodec_jax.codec import torch_file

TENSORS = {
    "weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "steps": np.array([7, 8], np.int64),
}


def legacy(path, tensors=TENSORS, protocol=1001, little=True, wrap=lambda described: described):
    """Writes `tensors` as PyTorch 1.5 laid a state dict out."""
    writer = torch_file._Writer()
    for key, (name, value) in enumerate(tensors.items()):
        writer.tensor(name, value, str(key))
    parts = [
        torch_file.LEGACY,
        pickle.dumps(protocol, 2),
        pickle.dumps({"protocol_version": protocol, "little_endian": little}, 2),
        wrap(writer.finish()),
        pickle.dumps([str(key) for key in range(len(tensors))], 2),
        *(struct.pack("<q", value.size) + value.tobytes() for value in tensors.values()),
    ]
    path.write_bytes(b"".join(parts))
    return path


def test_a_legacy_file_reads_like_an_archive(tmp_path):
    old = torch_file.read_state_dict(legacy(tmp_path / "old.pt"))
    torch_file.write_state_dict(tmp_path / "new.pt", TENSORS)
    new = torch_file.read_state_dict(tmp_path / "new.pt")
    assert list(old) == list(new) == list(TENSORS)
    for name, value in TENSORS.items():
        assert old[name].dtype == value.dtype
        np.testing.assert_array_equal(old[name], value)


def test_model_state_is_found_beside_an_optimiser_with_lists(tmp_path):
    def wrap(described):
        model = b"X\x0b\x00\x00\x00model_state" + described[2:-1]
        groups = b"X\x06\x00\x00\x00groups](K\x01K\x02e"  # a list that APPENDS fills
        return b"\x80\x02}(" + model + groups + b"u."

    found = torch_file.read_state_dict(legacy(tmp_path / "run.pt", wrap=wrap))
    np.testing.assert_array_equal(found["weight"], TENSORS["weight"])


def test_every_truncation_is_named(tmp_path):
    whole = legacy(tmp_path / "whole.pt").read_bytes()
    for size in range(len(torch_file.LEGACY), len(whole), 5):
        (tmp_path / "cut.pt").write_bytes(whole[:size])
        with pytest.raises(torch_file.TorchFileError, match=r"cut\.pt"):
            torch_file.read_state_dict(tmp_path / "cut.pt")


def test_other_protocols_and_byte_orders_are_refused(tmp_path):
    for options in ({"protocol": 7}, {"little": False}):
        with pytest.raises(torch_file.TorchFileError, match="not supported"):
            torch_file.read_state_dict(legacy(tmp_path / "x.pt", **options))


class Hostile:
    def __reduce__(self):
        return open, ("written", "w")


def test_a_hostile_stream_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    legacy(tmp_path / "bad.pt", wrap=lambda _: pickle.dumps({"a": Hostile()}, 2))
    with pytest.raises(torch_file.TorchFileError, match=r"bad\.pt: refused.*open"):
        torch_file.read_state_dict(tmp_path / "bad.pt")
    assert not (tmp_path / "written").exists()
