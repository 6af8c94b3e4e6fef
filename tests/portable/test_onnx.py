"""Codecs as ONNX graphs and as StableHLO: the same codes and sound as JAX, or nothing."""

import json
import subprocess
import sys
import wave

import numpy as np
import pytest

import llmcodec_jax
from llmcodec_jax import export
from llmcodec_jax.codec.auv.model import AUV
from llmcodec_jax.codec.inference import Codec
from llmcodec_jax.portable import auv, fourier, onnx, stablehlo
from llmcodec_jax.portable.graph import Graph, GraphError
from tests.codec.families import EXAMPLES
from tests.conftest import RATE, babble
from tests.tiny import SMALL, init

runtime = pytest.importorskip("onnxruntime", reason="pip install onnx onnxruntime")
pytest.importorskip("onnx", reason="pip install onnx")


def small(**fields) -> Codec:
    module = AUV(**SMALL, **fields)
    return Codec(module, init(module), buckets=(50, 100))


def session(graph: Graph):
    return runtime.InferenceSession(graph.model().SerializeToString())


@pytest.mark.parametrize("size", [1280, 640, 96, 20])
def test_the_transform_is_numpys_and_cancels_exactly(size):
    g = Graph("transform")
    parts = fourier.forward(g, g.input("x", np.float32, ("b", "t", size)), size)
    for name, part in zip(("real", "imaginary"), parts, strict=True):
        g.output(name, part, np.float32, ("b", "t", size // 2 + 1))
    frames = np.random.default_rng(0).normal(size=(2, 3, size)).astype(np.float32)
    frames[1, 2] = 0.25  # constant: all but the first bin cancel
    real, imaginary = session(g).run(None, {"x": frames})
    np.testing.assert_allclose(real + 1j * imaginary, np.fft.rfft(frames), atol=1e-4 * size**0.5)
    stages = max(power for power in range(6) if size % 4**power == 0)
    kept = np.arange(size // 2 + 1) % 4**stages != 0  # those of the last, odd factor round
    assert not real[1, 2][kept].any()
    assert not imaginary[1, 2][kept].any()


@pytest.mark.parametrize("fields", [{}, dict(levels=3), dict(conv_norm="rms")])
def test_any_batch_and_length_gives_jaxs_codes_and_sound(fields):
    codec = small(**fields)
    encoder = session(auv.encoder_graph(codec.module, codec.variables))
    decoder = session(auv.decoder_graph(codec.module, codec.variables))
    for samples in (640, 5001, 12_000):
        clips = [babble(samples / RATE, seed)[:samples] for seed in (1, 2)]
        expected = np.stack(codec.encode(clips))
        codes = encoder.run(None, {"wav": np.stack(clips)})[0]
        assert codes.dtype == np.int32
        np.testing.assert_array_equal(codes, expected)
        wav = decoder.run(None, {"codes": expected})[0]
        np.testing.assert_allclose(wav, np.stack(codec.decode(list(expected))), atol=1e-5)


def test_an_exported_folder_runs_without_this_package(tmp_path, capsys):
    assert export.main(
        ["--codec", "mini", "--format", "onnx", "--output", str(tmp_path / "out")]
    ) == 0  # fmt: skip
    assert "100.00% of 400 frames of 4 made-up sounds" in capsys.readouterr().out
    about = json.loads((tmp_path / "out/codec.json").read_text())
    assert (about["name"], about["sample_rate"], about["hop"]) == ("mini", RATE, 320)
    pcm = (32767 * babble(1.0, 4)).astype("<i2")
    with wave.open(str(tmp_path / "in.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(pcm.tobytes())
    names = ["in.wav", "tokens.npy", "out.wav"]
    command = [sys.executable, "-I", str(tmp_path / "out/example.py"), *names]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "jax" not in (tmp_path / "out/example.py").read_text().replace("llmcodec_jax", "")
    expected = llmcodec_jax.load_codec("mini").encode(pcm / np.float32(32768), RATE)
    np.testing.assert_array_equal(np.load(tmp_path / "tokens.npy"), expected)
    with wave.open(str(tmp_path / "out.wav")) as file:
        assert file.getnframes() == len(pcm)


def test_graphs_that_disagree_are_not_kept(tmp_path, monkeypatch):
    codec = small()
    other = init(codec.module, seed=1)
    wrong = lambda module, _: auv.encoder_graph(module, other)  # noqa: E731
    monkeypatch.setitem(onnx.GRAPHS, AUV, (wrong, auv.decoder_graph))
    with pytest.raises(GraphError, match="disagree with JAX and are not kept"):
        onnx.export(codec, "wrong", tmp_path, [babble(1.0, 1)])
    assert not list(tmp_path.glob("*.onnx"))


def test_int8_is_smaller_and_says_what_it_costs(tmp_path):
    codec = llmcodec_jax.load_codec("mini")
    clips = [babble(1.5, seed) for seed in range(3)]
    whole = onnx.export(codec, "mini", tmp_path / "whole", clips)
    found = onnx.export(codec, "mini", tmp_path / "int8", clips, int8=True)
    assert whole.codes == 1.0
    assert 0.9 < found.codes < 1
    sizes = [(tmp_path / kind / "encoder.onnx").stat().st_size for kind in ("int8", "whole")]
    assert sizes[0] < 0.4 * sizes[1]
    assert json.loads((tmp_path / "int8/codec.json").read_text())["agreement"]["codes"] < 1


def test_other_architectures_are_pointed_to_stablehlo(tmp_path):
    module = EXAMPLES["bigcodec"]
    with pytest.raises(GraphError, match="--format stablehlo writes every architecture"):
        onnx.export(Codec(module, init(module)), "other", tmp_path, [])


@pytest.mark.parametrize("family", ["auv_levels", "encodec"])
def test_stablehlo_programs_are_the_codec(tmp_path, family):
    module = EXAMPLES[family]
    codec = Codec(module, init(module), buckets=(50, 100))
    stablehlo.export(codec, "small", tmp_path, buckets=(50, 100))
    programs = stablehlo.load_programs(tmp_path)
    for frames in (20, 90):
        wav = babble(frames * codec.hop / RATE, 5)
        codes = programs.encode(wav, codec.sample_rate)
        np.testing.assert_array_equal(codes, codec.encode(wav, codec.sample_rate))
        np.testing.assert_allclose(programs.decode(codes), codec.decode(codes), atol=1e-5)
    with pytest.raises(ValueError, match="take 1 to 100"):
        programs.encode(np.zeros(101 * codec.hop))
