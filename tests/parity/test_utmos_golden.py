"""UTMOS against the package utmos-pytorch: a small model, seeded weights (make/utmos.py)."""

import json
from pathlib import Path

import numpy as np
import pytest

from llmcodec_jax.codec import torch_file
from llmcodec_jax.evaluation import additional, utmos
from llmcodec_jax.evaluation.reports import EvaluationError
from tests.parity.seeded import seeded_tensors, seeded_wav

GOLDEN = json.loads((Path(__file__).parent / "data" / "utmos.json").read_text())


def test_scores_are_the_published_codes(monkeypatch, tmp_path):
    """Read from a file as `torch.save` writes it; clips are padded, and it does not show."""
    torch_file.write_state_dict(tmp_path / "u.pt", seeded_tensors(GOLDEN["shapes"]))
    monkeypatch.setenv(utmos.VARIABLE, str(tmp_path / "u.pt"))
    assert additional.absent(["utmos"]) == {}
    wavs = [seeded_wav(length, number) for number, length in enumerate(GOLDEN["lengths"])]
    found = [utmos.score(wav) for wav in wavs]
    np.testing.assert_allclose(found, GOLDEN["scores"], atol=1e-5)
    values = additional.score(wavs[0], wavs[0], utmos.RATE, ("utmos",))
    assert values["utmos"] == values["utmos_original"] == pytest.approx(found[0])
    assert np.isnan(utmos.score(np.zeros(9000, np.float32)))


def test_without_its_file_it_is_absent_and_another_file_is_refused(monkeypatch, tmp_path):
    monkeypatch.delenv(utmos.VARIABLE, raising=False)
    assert "LLMCODEC_UTMOS names no file" in additional.absent(["utmos"])["utmos"]
    torch_file.write_state_dict(tmp_path / "x.pt", {"weight": np.zeros(3, np.float32)})
    monkeypatch.setenv(utmos.VARIABLE, str(tmp_path / "x.pt"))
    with pytest.raises(EvaluationError, match="not UTMOS's weights"):
        utmos.score(seeded_wav(9000, 0))
