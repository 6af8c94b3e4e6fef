"""Any codec as compiled-ahead programs (`jax.export`): StableHLO with its weights beside it.

A folder holds `codec.json`, `weights.safetensors` and one encoder and decoder for each padded
length. JAX keeps such programs loadable for six months at least, on the platforms they name; no
code of this package runs in them.

    codec = load_programs("DIR")
    codes = codec.encode(wav, sample_rate); wav = codec.decode(codes)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict

from llmcodec_jax import audio
from llmcodec_jax.codec.inference import Codec
from llmcodec_jax.codec.layout import LayoutError
from llmcodec_jax.ops import files

PLATFORMS = ("cpu", "cuda", "tpu")
FORMAT = 1
BUCKETS = (300, 1500)
"""Padded lengths in frames."""


def export(codec: Codec, name: str, output: Path, buckets: Sequence[int] = BUCKETS) -> None:
    """Writes the folder `output`; each program takes any number of clips at once."""
    output.mkdir(parents=True, exist_ok=True)
    flat = {"/".join(path): leaf for path, leaf in flatten_dict(dict(codec.variables)).items()}
    weights = {name: np.asarray(leaf) for name, leaf in flat.items()}
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in weights.items()}
    for frames in buckets:
        for kind, program, inputs in _programs(codec, frames):
            exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)(shapes, *inputs)
            with files.replacing(output / f"{kind}-{frames}.bin") as partial:
                partial.write_bytes(exported.serialize())
    with files.replacing(output / "weights.safetensors") as partial:
        partial.write_bytes(safetensors.numpy.save(weights))
    about = {"name": name, **codec.describe(), "stablehlo": FORMAT}
    versions = {"jax": jax.__version__, "platforms": PLATFORMS, "buckets": tuple(buckets)}
    with files.replacing(output / "codec.json") as partial:
        partial.write_text(json.dumps(about | versions, indent=2) + "\n")


def _programs(codec: Codec, frames: int):
    """(kind, function, abstract inputs) of one padded length."""
    module, (batch,) = codec.module, jax.export.symbolic_shape("batch")

    def nested(flat):
        from flax.traverse_util import unflatten_dict

        return unflatten_dict({tuple(name.split("/")): leaf for name, leaf in flat.items()})

    def encode(flat, wav, length):
        return module.apply(nested(flat), wav, length, method="encode").codes

    def decode(flat, codes, count):
        mask = jnp.arange(codes.shape[1]) < count[:, None]
        return module.apply(nested(flat), codes, mask, method="decode_codes")

    leaf = jax.ShapeDtypeStruct
    levels = (codec.levels,) if codec.levels > 1 else ()
    wav = leaf((batch, frames * codec.hop), jnp.float32)
    codes = leaf((batch, frames, *levels), jnp.int32)
    yield "encode", encode, (wav, leaf((batch,), jnp.int32))
    yield "decode", decode, (codes, leaf((batch,), jnp.int32))


class Programs:
    """Programs of a folder, ready to run."""

    def __init__(self, folder: Path, about: dict, weights: dict[str, jax.Array]):
        self._folder, self._weights, self._loaded = folder, weights, {}
        self.buckets: list[int] = sorted(about["buckets"])
        self.sample_rate: int = about["sample_rate"]
        self.hop: int = about["hop"]
        self.frame_rate: float = about["frame_rate"]
        self.codebook_size: int = about["codebook_size"]
        self.levels: int = about["levels"]

    def encode(self, wav, sample_rate: int | None = None) -> np.ndarray:
        """float [N] -> codes int32 [T] or [T, levels]. Raises ValueError past the last bucket."""
        wav = np.asarray(wav, np.float32)
        wav = audio.resample(wav, sample_rate or self.sample_rate, self.sample_rate)
        frames = -(-len(wav) // self.hop)
        bucket = self._bucket(frames)
        padded = np.pad(wav, (0, bucket * self.hop - len(wav)))[None]
        codes = self._run("encode", bucket, padded, len(wav))
        return np.asarray(codes)[0, :frames]

    def decode(self, codes) -> np.ndarray:
        """Codes [T] or [T, levels] -> float32 [T * hop]. Raises ValueError past the last bucket."""
        codes = np.asarray(codes, np.int32)
        bucket = self._bucket(len(codes))
        spare = [(0, bucket - len(codes))] + [(0, 0)] * (codes.ndim - 1)
        wav = self._run("decode", bucket, np.pad(codes, spare)[None], len(codes))
        return np.asarray(wav)[0, : len(codes) * self.hop]

    def _bucket(self, frames: int) -> int:
        for bucket in self.buckets:
            if 0 < frames <= bucket:
                return bucket
        raise ValueError(f"{frames} frames: these programs take 1 to {self.buckets[-1]}; cut it")

    def _run(self, kind: str, bucket: int, batch: np.ndarray, length: int):
        if (kind, bucket) not in self._loaded:
            path = self._folder / f"{kind}-{bucket}.bin"
            exported = jax.export.deserialize(bytearray(path.read_bytes()))
            self._loaded[kind, bucket] = jax.jit(exported.call)
        count = np.array([length], np.int32)
        return self._loaded[kind, bucket](self._weights, batch, count)


def load_programs(folder: str | Path) -> Programs:
    """A folder that `export` wrote. Raises FileNotFoundError or LayoutError naming the file."""
    folder = Path(folder)
    try:
        about = json.loads((folder / "codec.json").read_text())
        if about.get("stablehlo") != FORMAT:
            raise LayoutError(f"{folder / 'codec.json'}: not programs of format {FORMAT}")
        weights = safetensors.numpy.load_file(folder / "weights.safetensors")
    except (json.JSONDecodeError, AttributeError, safetensors.SafetensorError) as error:
        raise LayoutError(f"{folder}: not readable as exported programs ({error})") from error
    return Programs(folder, about, jax.device_put(weights))
