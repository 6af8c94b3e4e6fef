"""The published AUV / LLM-Codec layout: `tokenizer.*` and `token2wav.*` (method.md 1)."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmcodec_jax.codec import layout
from llmcodec_jax.codec.auv.model import AUV
from llmcodec_jax.codec.auv.stft import published_window
from llmcodec_jax.codec.layout import LayoutError, Tensor, affine, linear


def _feed_forward(name: str, width: int, hidden: int) -> list[Tensor]:
    return [
        *affine(f"{name}_layer_norm", (f"{name}_norm",), width),
        *linear(f"{name}.up_proj", (name, "up"), hidden, width),
        *linear(f"{name}.down_proj", (name, "down"), width, hidden),
    ]


def _convolution(codec: AUV) -> list[Tensor]:
    width, module, here = codec.width, "conv_module", ("convolution",)
    norm = affine(f"{module}.conv_norm", (*here, "conv_norm"), width)
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
        *affine(f"{module}.layer_norm", (*here, "norm"), width),
        pointwise(1, 2 * width),
        Tensor(f"{module}.depthwise_conv.weight", taps, (*here, "depthwise"), "depthwise"),
        *norm,
        pointwise(2, width),
    ]


def _layer(codec: AUV) -> list[Tensor]:
    width, hidden = codec.width, codec.ffn_multiple * codec.width
    return [
        *_feed_forward("ffn1", width, hidden),
        *affine("attn_layer_norm", ("attention_norm",), width),
        *linear("attn.to_qkv", ("attention", "qkv"), 3 * width, width, bias=False),
        *linear("attn.to_out", ("attention", "out"), width, width),
        *_convolution(codec),
        *_feed_forward("ffn2", width, hidden),
        *affine("final_layer_norm", ("final_norm",), width),
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
    final = affine(f"{prefix}.layer_norm", ("params", part, "conformer", "norm"), codec.width)
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
            Tensor(f"{weight}0", (out, 1, 1), (*here, name, "scale"), "flat"),
            Tensor(f"{weight}1", (out, into, 1), (*here, name, "direction"), "pointwise"),
        ]
    codebook = (codec.codebook_size, codec.code_dim)
    return [*tensors, Tensor(f"{prefix}._codebook.weight", codebook, (*here, "codebook"))]


def tensor_table(codec: AUV) -> list[Tensor]:
    """Every tensor of the published layout for this architecture, in the published order."""
    n_fft, width = 4 * codec.hop, codec.width
    window = functools.partial(published_window, n_fft)
    stft_head = ("params", "encoder", "stft_head", "projection")
    istft_head = ("params", "decoder", "istft_head", "projection")
    return [
        Tensor("tokenizer.stft_head.stft.window", (n_fft,), (), constant=window),
        *linear("tokenizer.stft_head.inp", stft_head, width, n_fft + 2),
        *_conformer(codec, "tokenizer.conformer", "encoder", codec.encoder_layers),
        *(t for level in range(codec.levels) for t in _quantizer_level(codec, level)),
        *_conformer(codec, "token2wav.conformer", "decoder", codec.decoder_layers),
        *linear("token2wav.istft_head.out", istft_head, n_fft + 2, width),
        Tensor("token2wav.istft_head.istft.window", (n_fft,), (), constant=window),
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


def recognises(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> bool:
    """Whether these tensors' names are AUV's."""
    return "tokenizer.vq.quantizers.0._codebook.weight" in shapes


def from_published(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[AUV, dict]:
    """Published names -> (AUV, {"params", "batch_stats"} of numpy arrays), every bit kept.

    `config` gives fields that shapes cannot tell (see `infer_fields`). Raises LayoutError.
    """
    tensors = layout.modern_names(tensors)
    codec = AUV(**{**infer_fields(layout.shapes_of(tensors)), **config})
    variables = layout.to_variables(tensor_table(codec), tensors)
    quantizer = variables.setdefault("batch_stats", {}).setdefault("quantizer", {})
    for level in range(codec.levels):
        uniform = np.full((codec.codebook_size,), 1 / codec.codebook_size, np.float32)
        quantizer[f"level_{level}"] = {"usage": uniform}
    return codec, variables


def to_published(codec: AUV, variables: Mapping) -> dict[str, np.ndarray]:
    """{"params", "batch_stats"} -> published names in the published order; a pure copy."""
    return layout.to_state_dict(tensor_table(codec), variables)
