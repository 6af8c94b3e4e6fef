"""A codec carried into other runtimes: ONNX files, or serialised StableHLO.

A folder holds `codec.json` and, for every bucket of padded length, an encoder and a decoder for one
clip. Shapes are static: pick the smallest bucket a clip fits, pad with zeros, state its length.

    encoder  wav float32 [1, F * hop], length int32 [1] (samples)    -> codes int32 [1, F]
    decoder  codes int32 [1, F], frames int32 [1] (valid ones)       -> wav float32 [1, F * hop]

With residual levels codes are [1, F, levels]. All ONNX files of a folder share `weights.bin`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from llmcodec_jax.codec.inference import Codec
from llmcodec_jax.errors import UserError
from llmcodec_jax.ops import dsp

EQUAL_CODES = 0.999  # share of codes that must be JAX's
AUDIO_ERROR = 1e-4  # largest difference of a sample
SHARED_BYTES = 1024  # tensors from this size on go to weights.bin
PLATFORMS = ("cpu", "cuda", "tpu")


class ExportError(UserError):
    """An export that was refused, or a folder that cannot be read; the message says why."""


def programs(codec: Codec, frames: int) -> dict[str, tuple[Callable, tuple]]:
    """Name of each half of one bucket -> (function of static shapes, its argument shapes)."""
    variables, module, samples = codec.variables, codec.module, frames * codec.hop
    levels = () if codec.levels == 1 else (codec.levels,)

    def encoder(wav, length):
        return module.apply(variables, wav, length, method="encode").codes

    def decoder(codes, count):
        mask = jnp.arange(frames) < count[:, None]
        return module.apply(variables, codes, mask, method="decode_codes")

    one = jax.ShapeDtypeStruct((1,), jnp.int32)
    wav = jax.ShapeDtypeStruct((1, samples), jnp.float32)
    codes = jax.ShapeDtypeStruct((1, frames, *levels), jnp.int32)
    return {"encoder": (encoder, (wav, one)), "decoder": (decoder, (codes, one))}


def describe(codec: Codec, kind: str, buckets: Sequence[int], suffix: str) -> dict[str, Any]:
    """What `codec.json` says of an exported folder."""
    return {
        "format": kind,
        "architecture": codec.architecture,
        "digest": codec.digest,
        "sample_rate": codec.sample_rate,
        "hop": codec.hop,
        "codebook_size": codec.codebook_size,
        "levels": codec.levels,
        "buckets": [
            {"frames": n, "encoder": f"encoder_{n}{suffix}", "decoder": f"decoder_{n}{suffix}"}
            for n in buckets
        ],
    }


def export_onnx(
    codec: Codec, output: Path, clips: Sequence[np.ndarray], buckets: Sequence[int]
) -> dict[str, float]:
    """Writes the folder and runs it on `clips` (float32 [N] at the codec's rate).

    Returns the share of equal codes and the largest difference of audio decoded from the same
    codes. Raises ExportError, and leaves nothing behind, where they miss the limits above.
    """
    from jax2onnx import to_onnx  # the extra `onnx`

    output.mkdir(parents=True)
    try:
        with (output / "weights.bin").open("wb") as blob:
            shared: dict[bytes, int] = {}
            for frames in buckets:
                for name, (program, shapes) in programs(codec, frames).items():
                    with dsp.transforms_as_products():
                        closed = jax.make_jaxpr(program)(*shapes)
                    # Traced first: the converter fails inside Flax's own scan.
                    flat = jax.extend.core.jaxpr_as_fun(closed)
                    model: Any = to_onnx(lambda *x, flat=flat: flat(*x)[0], list(shapes))
                    _share_weights(model, blob, shared)
                    _name(model, name)
                    (output / f"{name}_{frames}.onnx").write_bytes(model.SerializeToString())
        about = describe(codec, "onnx", buckets, ".onnx")
        about["checked"] = checked = compare_onnx(codec, output, about, clips)
        if checked["equal_codes"] < EQUAL_CODES or checked["audio_error"] > AUDIO_ERROR:
            raise ExportError(
                f"{output}: refused: of {len(clips)} clips {checked['equal_codes']:.2%} of the "
                f"codes are JAX's (needed: {EQUAL_CODES:.1%}), audio differs by "
                f"{checked['audio_error']:.1e} (allowed: {AUDIO_ERROR:.0e})"
            )
        (output / "codec.json").write_text(json.dumps(about, indent=1) + "\n")
    except BaseException:
        shutil.rmtree(output)
        raise
    return checked


def test_signals(sample_rate: int) -> list[np.ndarray]:
    """Made sounds to compare on where no recordings are given: glides, chords and noise."""
    time = np.arange(2 * sample_rate) / sample_rate
    random = np.random.default_rng(0)
    sounds = []
    for pitch in (90.0, 180.0, 330.0):
        phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.2 * np.sin(3 * time))) / sample_rate
        tone = sum(np.sin(k * phase) / k for k in range(1, 12))
        swell = 0.5 + 0.5 * np.sin(2 * np.pi * 2 * time)
        sounds.append(0.1 * tone * swell + 0.005 * random.standard_normal(len(time)))
    return [sound.astype(np.float32) for sound in sounds]


def _name(model: Any, program: str) -> None:
    """Gives inputs and output the names that the module's docstring says."""
    names = {"encoder": ("wav", "length", "codes"), "decoder": ("codes", "frames", "wav")}[program]
    values = [*model.graph.input, *model.graph.output]
    new = {value.name: name for value, name in zip(values, names, strict=True)}
    for value in values:
        value.name = new[value.name]
    for node in _nodes(model.graph):
        for field in (node.input, node.output):
            field[:] = [new.get(name, name) for name in field]


def _nodes(graph: Any):
    """All nodes of a graph, those of loops' bodies too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _share_weights(model: Any, blob: Any, shared: dict[bytes, int]) -> None:
    """Moves large tensors to the open file `blob`, each distinct one once."""
    for tensor in model.graph.initializer:
        data = tensor.raw_data
        if len(data) < SHARED_BYTES:
            continue
        key = hashlib.sha256(data).digest()
        if key not in shared:
            blob.write(b"\0" * (-blob.tell() % 64))
            shared[key] = blob.tell()
            blob.write(data)
        for field, value in (
            ("location", "weights.bin"),
            ("offset", shared[key]),
            ("length", len(data)),
        ):
            tensor.external_data.add(key=field, value=str(value))
        tensor.data_location = 1  # EXTERNAL
        tensor.ClearField("raw_data")


def compare_onnx(
    codec: Codec, folder: Path, about: dict[str, Any], clips: Sequence[np.ndarray]
) -> dict[str, float]:
    """{"equal_codes": share, "audio_error": largest difference} of a folder against `codec`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # unused initialisers are no news
    equal = total = 0
    error = 0.0
    for bucket, group in _by_bucket(clips, about):
        encoder, decoder = (
            onnxruntime.InferenceSession(folder / bucket[name], options)
            for name in ("encoder", "decoder")
        )
        for clip in group:
            want = codec.encode(clip)
            count = np.array([len(want)], np.int32)
            padded = np.zeros((1, bucket["frames"] * codec.hop), np.float32)
            padded[0, : len(clip)] = clip
            length = np.array([len(clip)], np.int32)
            (got,) = encoder.run(None, {"wav": padded, "length": length})
            equal += int((got[0, : len(want)] == want).sum())
            total += want.size
            codes = np.zeros(got.shape, np.int32)
            codes[0, : len(want)] = want
            (wav,) = decoder.run(None, {"codes": codes, "frames": count})
            sound = codec.decode(want)
            error = max(error, float(np.abs(wav[0, : len(sound)] - sound).max()))
    return {"equal_codes": equal / max(total, 1), "audio_error": error}


def _by_bucket(clips: Sequence[np.ndarray], about: dict[str, Any]):
    """(bucket, its clips) for every bucket that has some; longer clips are cut to the last."""
    buckets, hop = about["buckets"], about["hop"]
    limit = buckets[-1]["frames"] * hop
    groups: list[list[np.ndarray]] = [[] for _ in buckets]
    for clip in (clip[:limit] for clip in clips):
        place = next(i for i, b in enumerate(buckets) if len(clip) <= b["frames"] * hop)
        groups[place].append(clip)
    return [(b, group) for b, group in zip(buckets, groups, strict=True) if group]


def export_stablehlo(codec: Codec, output: Path, buckets: Sequence[int]) -> None:
    """Writes versioned, serialised StableHLO for CPU, CUDA and TPU; `load_stablehlo` runs it."""
    output.mkdir(parents=True)
    try:
        for frames in buckets:
            for name, (program, shapes) in programs(codec, frames).items():
                made = jax.export.export(jax.jit(program), platforms=PLATFORMS)(*shapes)
                (output / f"{name}_{frames}.stablehlo").write_bytes(bytes(made.serialize()))
        about = describe(codec, "stablehlo", buckets, ".stablehlo")
        (output / "codec.json").write_text(json.dumps(about, indent=1) + "\n")
    except BaseException:
        shutil.rmtree(output)
        raise


def load_stablehlo(folder: str | Path) -> tuple[dict[str, Any], dict[int, dict[str, Callable]]]:
    """(codec.json, frames -> {"encoder", "decoder"} as JAX functions); nothing else is needed.

    Raises ExportError for a folder of another format.
    """
    folder = Path(folder)
    about = json.loads((folder / "codec.json").read_text())
    if about.get("format") != "stablehlo":
        raise ExportError(f"{folder}: its codec.json says format {about.get('format')!r}")
    return about, {
        bucket["frames"]: {
            name: jax.jit(
                jax.export.deserialize(bytearray((folder / bucket[name]).read_bytes())).call
            )
            for name in ("encoder", "decoder")
        }
        for bucket in about["buckets"]
    }
