"""A codec as ONNX: encoder.onnx, decoder.onnx, codec.json and an example that needs only numpy.

The graphs are compared with JAX before they are kept; what does not agree is not written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from llmcodec_jax import audio
from llmcodec_jax.codec.auv.model import AUV
from llmcodec_jax.codec.inference import Codec
from llmcodec_jax.ops import files
from llmcodec_jax.portable import auv
from llmcodec_jax.portable.graph import OPSET, Graph, GraphError

GRAPHS: dict[type[nn.Module], tuple[Callable[..., Graph], Callable[..., Graph]]] = {
    AUV: (auv.encoder_graph, auv.decoder_graph),
}
"""Architecture -> what writes its encoder and its decoder."""
SAME_CODES = 0.999  # share of codes that must equal JAX's
SAME_AUDIO = 1e-4  # largest difference of a sample for equal codes
EXAMPLE = Path(__file__).with_name("example.py")


class Agreement(NamedTuple):
    """How far the graphs agree with JAX."""

    clips: int
    frames: int
    codes: float  # share of equal codes
    audio: float  # largest difference of a sample, for JAX's codes


def export(
    codec: Codec, name: str, output: Path, clips: Sequence[np.ndarray], int8: bool = False
) -> Agreement:
    """Writes the folder `output`; `clips` float [N] at the codec's rate are what is compared.

    `int8` keeps the matrices of products as 8-bit integers: a third of the size, other codes (the
    agreement says how many). Raises GraphError where the architecture has no graphs, a package is
    missing, or the graphs disagree with JAX.
    """
    if type(codec.module) not in GRAPHS:
        known = ", ".join(cls.__name__ for cls in GRAPHS)
        raise GraphError(
            f"{codec.architecture} codecs cannot be written as ONNX yet (only {known}); "
            "--format stablehlo writes every architecture"
        )
    output.mkdir(parents=True, exist_ok=True)
    paths = [output / f"{part}.onnx" for part in ("encoder", "decoder")]
    for path, build in zip(paths, GRAPHS[type(codec.module)], strict=True):
        model = build(codec.module, codec.variables).model()
        with files.replacing(path) as partial:
            partial.write_bytes(model.SerializeToString())
        if int8:
            _to_int8(path)
    found = compare(codec, paths, clips)
    if not int8 and (found.codes < SAME_CODES or found.audio > SAME_AUDIO):
        for path in paths:
            path.unlink()
        raise GraphError(
            f"the graphs disagree with JAX and are not kept: {found.codes:.2%} of {found.frames} "
            f"frames have equal codes, samples differ by up to {found.audio:.1e}"
        )
    about = describe(codec, name) | {"int8": int8, "agreement": found._asdict()}
    with files.replacing(output / "codec.json") as partial:
        partial.write_text(json.dumps(about, indent=2) + "\n")
    shutil.copyfile(EXAMPLE, output / "example.py")
    return found


def describe(codec: Codec, name: str) -> dict[str, Any]:
    """What a program needs to know to use the graphs."""
    codes = ["batch", "frames"] if codec.levels == 1 else ["batch", "frames", codec.levels]
    return {
        "name": name,
        **codec.describe(),
        "min_samples": 2 * codec.hop,
        "opset": OPSET,
        "encoder": {"wav": ["float32", ["batch", "samples"]], "codes": ["int32", codes]},
        "decoder": {"codes": ["int32", codes], "wav": ["float32", ["batch", "frames * hop"]]},
    }


def sessions(paths: Iterable[Path]) -> list:
    """Graphs ready to run on the CPU. Raises GraphError where onnxruntime is missing."""
    try:
        import onnxruntime
    except ImportError as error:
        raise GraphError(
            "running ONNX needs onnxruntime: pip install 'llmcodec-jax[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    # Threads that wait for each other by spinning take twice the processor time for nothing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return [
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for path in paths
    ]


def compare(codec: Codec, paths: Sequence[Path], clips: Iterable[np.ndarray]) -> Agreement:
    """Runs the graphs and JAX over clips that fit one of the codec's buckets."""
    run = sessions(paths)
    longest = codec.buckets[-1] * codec.hop
    count = frames = same = 0
    worst = 0.0
    for clip in clips:
        clip = np.asarray(clip, np.float32)[:longest]
        if len(clip) < 2 * codec.hop:
            continue
        codes = codec.encode(clip, codec.sample_rate)
        found = run[0].run(None, {"wav": clip[None]})[0][0]
        equal = found == codes
        same += int(equal.reshape(len(codes), -1).all(axis=1).sum())
        wav = run[1].run(None, {"codes": codes[None]})[0][0]
        worst = max(worst, float(np.abs(wav - codec.decode(codes)).max()))
        count, frames = count + 1, frames + len(codes)
    if not frames:
        raise GraphError(f"nothing to compare: every clip is shorter than {2 * codec.hop} samples")
    return Agreement(count, frames, same / frames, worst)


def read_clips(folder: Path, sample_rate: int, most: int = 50) -> list[np.ndarray]:
    """Up to `most` clips of a folder, evenly chosen. Raises AudioError."""
    paths = audio.find(folder)
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(most, len(paths))).astype(int))
    return [audio.load(paths[i], sample_rate) for i in chosen]


def made_up_clips(sample_rate: int) -> list[np.ndarray]:
    """Eight seconds of gliding voices, hiss and silence, for when there is no folder of clips."""
    clips = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        time = np.arange(2 * sample_rate) / sample_rate
        pitch = rng.uniform(80, 240) * (1 + 0.2 * np.sin(2 * np.pi * rng.uniform(0.5, 2) * time))
        phase = 2 * np.pi * np.cumsum(pitch) / sample_rate
        voice = sum(np.sin(k * phase) / k for k in range(1, 20))
        loud = np.clip(np.sin(2 * np.pi * rng.uniform(2, 5) * time), 0, 1)
        clips.append((0.2 * voice * loud + 0.01 * rng.normal(size=len(time))).astype(np.float32))
    return clips


def _to_int8(path: Path) -> None:
    """Keeps the large matrices of products as integers with a scale for each column.

    What they multiply stays float32, and so do the codebook and the projections beside it: rounding
    the signal itself costs 97 % of the codes.
    """
    import onnx

    graph = (model := onnx.load(path)).graph
    factors = {node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for tensor in [t for t in graph.initializer if t.name in factors and min(t.dims) >= 64]:
        matrix = onnx.numpy_helper.to_array(tensor)
        scale = (np.abs(matrix).max(axis=0) / 127 + 1e-12).astype(np.float32)
        names = f"{tensor.name}_int8", f"{tensor.name}_scale"
        tables = ((matrix / scale).round().astype(np.int8), scale)
        for name, values in zip(names, tables, strict=True):
            graph.initializer.append(onnx.numpy_helper.from_array(values, name))
        graph.initializer.remove(tensor)
        whole = onnx.helper.make_node("DequantizeLinear", names, [tensor.name], axis=1)
        graph.node.insert(0, whole)
    with files.replacing(path) as partial:
        partial.write_bytes(model.SerializeToString())
