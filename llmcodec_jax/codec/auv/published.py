"""The published AUV / LLM-Codec layout: names, shapes and bits, both ways, without PyTorch.

`tensor_table` is the one place that says which published tensor is which of our parameters;
import, export and the architecture check all walk it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from llmcodec_jax.codec import torch_file
from llmcodec_jax.codec.auv.model import AUV, from_fields
from llmcodec_jax.codec.auv.stft import published_window
from llmcodec_jax.ops import dsp

CONFIG_NAME, WEIGHTS_NAME = "codec.json", "codec.safetensors"
SHIPPED = {"mini": Path(__file__).parents[2] / "mini"}
"""Codecs that come with the package, by name; each folder holds its model card."""


class LayoutError(ValueError):
    """Tensors that are not this architecture; the message names the first that differ."""


def _same(x: np.ndarray) -> np.ndarray:
    return x


# kind -> (published array to ours, ours to published)
KINDS: dict[str, tuple[Callable, Callable]] = {
    "same": (_same, _same),
    "linear": (np.transpose, np.transpose),  # [out, in] <-> [in, out]
    "pointwise": (lambda x: x[:, :, 0].T, lambda x: x.T[:, :, None]),  # [out, in, 1]
    "depthwise": (lambda x: x[:, 0].T, lambda x: x.T[:, None]),  # [D, 1, taps] <-> [taps, D]
    "gain": (lambda x: x[:, 0, 0], lambda x: x[:, None, None]),  # [out, 1, 1] <-> [out]
    "count": (lambda x: x.astype(np.int32), lambda x: x.astype(np.int64)),
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One published tensor: its name and shape there, its path (and layer) and form here."""

    name: str
    shape: tuple[int, ...]
    path: tuple[str, ...]  # () for the window buffers, which are computed
    kind: str = "same"
    layer: int | None = None


def _affine(name: str, path: tuple[str, ...], width: int) -> list[Tensor]:
    return [
        Tensor(f"{name}.weight", (width,), (*path, "scale")),
        Tensor(f"{name}.bias", (width,), (*path, "bias")),
    ]


def _linear(name: str, path: tuple[str, ...], out: int, into: int, bias: bool = True):
    tensors = [Tensor(f"{name}.weight", (out, into), (*path, "kernel"), "linear")]
    return tensors + [Tensor(f"{name}.bias", (out,), (*path, "bias"))] * bias


def _feed_forward(name: str, width: int, hidden: int) -> list[Tensor]:
    return [
        *_affine(f"{name}_layer_norm", (f"{name}_norm",), width),
        *_linear(f"{name}.up_proj", (name, "up"), hidden, width),
        *_linear(f"{name}.down_proj", (name, "down"), width, hidden),
    ]


def _convolution(codec: AUV) -> list[Tensor]:
    width, module, here = codec.width, "conv_module", ("convolution",)
    norm = _affine(f"{module}.conv_norm", (*here, "conv_norm"), width)
    if codec.conv_norm == "batch":
        norm += [
            Tensor(f"{module}.conv_norm.running_mean", (width,), ("mean",)),
            Tensor(f"{module}.conv_norm.running_var", (width,), ("var",)),
            Tensor(f"{module}.conv_norm.num_batches_tracked", (), ("steps",), "count"),
        ]
    else:
        norm = norm[:1]

    def pointwise(number: int, out: int) -> Tensor:
        path = (*here, f"pointwise{number}", "kernel")
        return Tensor(f"{module}.pointwise_conv{number}.weight", (out, width, 1), path, "pointwise")

    taps = (width, 1, codec.conv_kernel)
    return [
        *_affine(f"{module}.layer_norm", (*here, "norm"), width),
        pointwise(1, 2 * width),
        Tensor(f"{module}.depthwise_conv.weight", taps, (*here, "depthwise"), "depthwise"),
        *norm,
        pointwise(2, width),
    ]


def _layer(codec: AUV) -> list[Tensor]:
    width, hidden = codec.width, codec.ffn_multiple * codec.width
    return [
        *_feed_forward("ffn1", width, hidden),
        *_affine("attn_layer_norm", ("attention_norm",), width),
        *_linear("attn.to_qkv", ("attention", "qkv"), 3 * width, width, bias=False),
        *_linear("attn.to_out", ("attention", "out"), width, width),
        *_convolution(codec),
        *_feed_forward("ffn2", width, hidden),
        *_affine("final_layer_norm", ("final_norm",), width),
    ]


def _conformer(codec: AUV, prefix: str, part: str, layers: int) -> list[Tensor]:
    statistics = ("batch_stats", part, "conformer", "layers", "convolution", "conv_norm")
    parameters = ("params", part, "conformer", "layers")
    tensors = [
        dataclasses.replace(
            tensor,
            name=f"{prefix}.layers.{index}.{tensor.name}",
            path=(statistics if len(tensor.path) == 1 else parameters) + tensor.path,
            layer=index,
        )
        for index in range(layers)
        for tensor in _layer(codec)
    ]
    final = _affine(f"{prefix}.layer_norm", ("params", part, "conformer", "norm"), codec.width)
    return tensors + final


def _quantizer_level(codec: AUV, level: int) -> list[Tensor]:
    tensors = []
    sides = {
        "in_proj": (codec.code_dim, codec.width),
        "out_proj": (codec.width, codec.code_dim),
    }
    here = ("params", "quantizer", f"level_{level}")
    prefix = f"tokenizer.vq.quantizers.{level}"
    for name, (out, into) in sides.items():
        weight = f"{prefix}.{name}.parametrizations.weight.original"
        tensors += [
            Tensor(f"{prefix}.{name}.bias", (out,), (*here, name, "bias")),
            Tensor(f"{weight}0", (out, 1, 1), (*here, name, "scale"), "gain"),
            Tensor(f"{weight}1", (out, into, 1), (*here, name, "direction"), "pointwise"),
        ]
    codebook = (codec.codebook_size, codec.code_dim)
    return [*tensors, Tensor(f"{prefix}._codebook.weight", codebook, (*here, "codebook"))]


def tensor_table(codec: AUV) -> list[Tensor]:
    """Every tensor of the published layout for this architecture, in the published order."""
    n_fft, width = 4 * codec.hop, codec.width
    stft_head = ("params", "encoder", "stft_head", "projection")
    istft_head = ("params", "decoder", "istft_head", "projection")
    return [
        Tensor("tokenizer.stft_head.stft.window", (n_fft,), ()),
        *_linear("tokenizer.stft_head.inp", stft_head, width, n_fft + 2),
        *_conformer(codec, "tokenizer.conformer", "encoder", codec.encoder_layers),
        *(t for level in range(codec.levels) for t in _quantizer_level(codec, level)),
        *_conformer(codec, "token2wav.conformer", "decoder", codec.decoder_layers),
        *_linear("token2wav.istft_head.out", istft_head, n_fft + 2, width),
        Tensor("token2wav.istft_head.istft.window", (n_fft,), ()),
    ]


def infer_fields(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Fields of the AUV whose layout these tensors have, every size read from where it stands.

    Shapes cannot tell the sample rate, the head width and the partitions: a codec.json or a
    sidecar NAME.json does, or they keep their defaults. Raises LayoutError where a tensor that
    tells a size is missing.
    """

    def size(name: str, axis: int) -> int:
        if name not in shapes or len(shapes[name]) <= axis:
            raise LayoutError(f"not an AUV layout: {name} is missing or has too few dimensions")
        return shapes[name][axis]

    def count(pattern: str) -> int:
        return len({m[1] for n in shapes if (m := re.match(pattern, n))})

    layer = "tokenizer.conformer.layers.0"
    width = size("tokenizer.conformer.layer_norm.weight", 0)
    batch_norm = f"{layer}.conv_module.conv_norm.running_mean" in shapes
    return dict(
        hop=size("tokenizer.stft_head.stft.window", 0) // 4,
        width=width,
        encoder_layers=count(r"tokenizer\.conformer\.layers\.(\d+)\."),
        decoder_layers=count(r"token2wav\.conformer\.layers\.(\d+)\."),
        ffn_multiple=size(f"{layer}.ffn1.up_proj.weight", 0) // max(width, 1),
        conv_kernel=size(f"{layer}.conv_module.depthwise_conv.weight", 2),
        conv_norm="batch" if batch_norm else "rms",
        codebook_size=size("tokenizer.vq.quantizers.0._codebook.weight", 0),
        code_dim=size("tokenizer.vq.quantizers.0._codebook.weight", 1),
        levels=count(r"tokenizer\.vq\.quantizers\.(\d+)\."),
    )


def check_layout(codec: AUV, shapes: Mapping[str, tuple[int, ...]], source: str = "") -> None:
    """Raises LayoutError naming the first tensors that differ from the architecture."""
    expected = {tensor.name: tensor.shape for tensor in tensor_table(codec)}
    problems = []
    for name, shape in expected.items():
        if name not in shapes:
            problems.append(f"{name}: missing")
        elif tuple(shapes[name]) != shape:
            problems.append(f"{name}: {tuple(shapes[name])} instead of {shape}")
    extra = [name for name in shapes if name not in expected]
    problems += [f"{name}: not part of this architecture" for name in extra]
    if problems:
        more = f"\n  ... and {len(problems) - 5} more" * (len(problems) > 5)
        raise LayoutError(
            f"{source or 'tensors'}: not the expected architecture:\n  "
            + "\n  ".join(problems[:5])
            + more
        )


def to_variables(codec: AUV, tensors: Mapping[str, np.ndarray], source: str = "") -> dict:
    """Published names -> {"params", "batch_stats"}, float32. Raises LayoutError."""
    tensors = {_modern_name(name): value for name, value in tensors.items()}
    check_layout(codec, {name: np.shape(value) for name, value in tensors.items()}, source)
    flat: dict[tuple[str, ...], Any] = {}
    for tensor in tensor_table(codec):
        value = np.asarray(tensors[tensor.name])
        if not tensor.path:
            if not np.abs(value.astype(np.float32) - dsp.hann(len(value))).max() < 1e-5:
                raise LayoutError(f"{source}: {tensor.name} is not a Hann window")
            continue
        value = value.astype(np.int64 if tensor.kind == "count" else np.float32)
        ours = KINDS[tensor.kind][0](value)
        if tensor.layer is None:
            flat[tensor.path] = np.array(ours)
        else:
            flat.setdefault(tensor.path, []).append(ours)
    for level in range(codec.levels):
        uniform = np.full((codec.codebook_size,), 1 / codec.codebook_size, np.float32)
        flat[("batch_stats", "quantizer", f"level_{level}", "usage")] = uniform
    stacked = {p: np.stack(v) if isinstance(v, list) else v for p, v in flat.items()}
    return unflatten_dict(stacked)


def _modern_name(name: str) -> str:
    """Older exports write weight norm as `weight_g`, `weight_v`."""
    name = re.sub(r"\.weight_g$", ".parametrizations.weight.original0", name)
    return re.sub(r"\.weight_v$", ".parametrizations.weight.original1", name)


def to_state_dict(codec: AUV, variables: Mapping) -> dict[str, np.ndarray]:
    """{"params", "batch_stats"} -> published names in the published order; a pure copy."""
    flat = flatten_dict(jax.device_get(dict(variables)))
    result = {}
    for tensor in tensor_table(codec):
        if not tensor.path:
            result[tensor.name] = published_window(4 * codec.hop)
            continue
        value = np.asarray(flat[tensor.path])
        value = value if tensor.layer is None else value[tensor.layer]
        result[tensor.name] = np.array(KINDS[tensor.kind][1](value), order="C")
    return result


def read_tensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict | None]:
    """.pt or .safetensors -> (published names -> arrays, codec fields if the file carries them).

    A training checkpoint's state dict under the key `auv` is found by itself.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return torch_file.read_state_dict(path, key="auv"), None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise LayoutError(f"{path}: not a readable safetensors file ({error})") from error
    return tensors, json.loads(metadata["codec"]) if "codec" in metadata else None


def load_auv_variables(path: str | Path, expect: AUV | None = None) -> tuple[AUV, dict]:
    """Any CODEC path -> (AUV module, {"params", "batch_stats"} of numpy arrays).

    `path`: "mini" (shipped), a run folder, a converted folder, a `.safetensors` export or a
    published `.pt`. With `expect` the tensors must have that module's layout (LayoutError names
    those that differ) and that module is returned; otherwise the architecture is the file's.
    """
    weights, fields = find_weights(path)
    tensors, embedded = read_tensors(weights)
    fields = fields or embedded or {}
    shapes = {_modern_name(name): np.shape(value) for name, value in tensors.items()}
    codec = expect if expect is not None else from_fields({**infer_fields(shapes), **fields})
    return codec, to_variables(codec, tensors, str(weights))


def find_weights(path: str | Path) -> tuple[Path, dict | None]:
    """CODEC -> (weight file, fields its codec.json or sidecar gives). Raises FileNotFoundError."""
    path = SHIPPED.get(str(path), Path(path))
    if path.is_file():
        sidecar = path.with_suffix(".json")
        return path, json.loads(sidecar.read_text()) if sidecar.is_file() else None
    for folder in (path / "codec", path):
        if (folder / CONFIG_NAME).is_file():
            return folder / WEIGHTS_NAME, json.loads((folder / CONFIG_NAME).read_text())
    if path.is_dir():
        raise FileNotFoundError(f"{path}: no {CONFIG_NAME} here or in its codec/ folder")
    raise FileNotFoundError(
        f"{path}: no such codec (mini, a run, a converted folder, .safetensors, .pt)"
    )
