"""Codecs in other runtimes: exported files do what JAX does, and are refused where they do not."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

import llmcodec_jax
from llmcodec_jax import export
from llmcodec_jax.codec import portable
from llmcodec_jax.ops import dsp

ROOT = Path(__file__).parents[2]


def test_transforms_as_products_are_the_transforms():
    frames = jax.random.normal(jax.random.key(0), (2, 3, 1280))
    plain = dsp.half_spectrum(frames)
    with dsp.transforms_as_products():
        products = dsp.half_spectrum(frames)
        back = dsp.from_half_spectrum(*products, 1280)
    for ours, theirs in zip(products, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)  # sums of 1,280 terms of size one
    np.testing.assert_allclose(back, frames, atol=1e-5)
    np.testing.assert_allclose(dsp.from_half_spectrum(*plain, 1280), frames, atol=1e-5)


@pytest.fixture(scope="module")
def mini():
    return llmcodec_jax.load_codec("mini", batch_size=1)


def test_stablehlo_runs_and_agrees(mini, tmp_path):
    folder = tmp_path / "out"
    command = ["--codec", "mini", "--format", "stablehlo", "--seconds", "2"]
    assert export.main([*command, "--output", str(folder)]) == 0
    about, programs = portable.load_stablehlo(folder)
    assert about["digest"] == mini.digest
    clip = portable.test_signals(mini.sample_rate)[0][:20_000]
    padded = np.zeros((1, 32_000), np.float32)
    padded[0, : len(clip)] = clip
    codes = programs[100]["encoder"](padded, np.array([len(clip)], np.int32))
    expected = mini.encode(clip)
    np.testing.assert_array_equal(np.asarray(codes)[0, : len(expected)], expected)


def test_formats_ask_for_what_they_export(tmp_path, capsys):
    with pytest.raises(SystemExit):
        export.main(["--run", "runs/x", "--format", "onnx", "--output", str(tmp_path / "o")])
    assert "take --codec" in capsys.readouterr().err


@pytest.mark.slow
def test_onnx_agrees_and_its_example_runs(mini, tmp_path):
    pytest.importorskip("jax2onnx", reason="the extra `onnx` is not installed")
    folder = tmp_path / "out"
    clips = portable.test_signals(mini.sample_rate)
    checked = portable.export_onnx(mini, folder, clips, [100])
    assert checked["equal_codes"] >= portable.EQUAL_CODES
    assert json.loads((folder / "codec.json").read_text())["checked"] == checked
    example = runpy.run_path(str(ROOT / "docs/examples/onnx_codec.py"))["OnnxCodec"](folder)
    codes = example.encode(clips[0])
    np.testing.assert_array_equal(codes, mini.encode(clips[0]))
    np.testing.assert_allclose(example.decode(codes), mini.decode(codes), atol=1e-4)


@pytest.mark.slow
def test_a_wrong_onnx_export_is_refused(mini, tmp_path, monkeypatch):
    pytest.importorskip("jax2onnx", reason="the extra `onnx` is not installed")
    monkeypatch.setattr(portable, "AUDIO_ERROR", -1.0)
    with pytest.raises(portable.ExportError, match="refused"):
        portable.export_onnx(mini, tmp_path / "out", portable.test_signals(16_000), [100])
    assert not (tmp_path / "out").exists()
