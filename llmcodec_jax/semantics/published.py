"""HuBERT and wav2vec 2.0 as Hugging Face publishes them: names and fields, without PyTorch."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmcodec_jax.codec import layout, store
from llmcodec_jax.codec.layout import LayoutError, Tensor
from llmcodec_jax.semantics.encoder import SpeechEncoder

BESIDE = re.compile(
    r"masked_spec_embed|(lm_head|classifier|projector|quantizer|project_hid|project_q)\..*"
    r"|layer_weights|adapter\..*"
)
"""Tensors of training heads that stand in a checkpoint beside the encoder; they are left out."""


def from_config(config: Mapping[str, Any], standardise: bool = True) -> SpeechEncoder:
    """A transformers `config.json` -> the module. Raises LayoutError for what cannot be run."""
    family = config.get("model_type")
    if family not in ("hubert", "wav2vec2"):
        raise LayoutError(f"model_type is {family!r}; speech encoders are hubert or wav2vec2")
    for name in ("hidden_act", "feat_extract_activation"):
        if config.get(name, "gelu") != "gelu":
            raise LayoutError(f"{name} is {config[name]!r}; only 'gelu' can be run")
    if config.get("conv_pos_batch_norm") or config.get("add_adapter"):
        raise LayoutError("conv_pos_batch_norm and add_adapter cannot be run")
    return SpeechEncoder(
        family=family,
        conv_channels=tuple(config["conv_dim"]),
        conv_kernels=tuple(config["conv_kernel"]),
        conv_strides=tuple(config["conv_stride"]),
        conv_bias=config["conv_bias"],
        conv_norm=config["feat_extract_norm"],
        projection_norm=config.get("feat_proj_layer_norm", True),
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        ffn_width=config["intermediate_size"],
        position_kernel=config["num_conv_pos_embeddings"],
        position_groups=config["num_conv_pos_embedding_groups"],
        norm_first=config["do_stable_layer_norm"],
        epsilon=config["layer_norm_eps"],
        standardise=standardise,
    )


def tensor_table(encoder: SpeechEncoder) -> list[Tensor]:
    """Every tensor of the published encoder, without the prefix of task models."""
    table, into = [], 1
    for index, out in enumerate(encoder.conv_channels):
        name, path = f"feature_extractor.conv_layers.{index}", ("params", f"conv_{index}")
        shape = (out, into, encoder.conv_kernels[index])
        table.append(Tensor(f"{name}.conv.weight", shape, (*path, "kernel"), "conv"))
        if encoder.conv_bias:
            table.append(Tensor(f"{name}.conv.bias", (out,), (*path, "bias")))
        if encoder.conv_norm == "layer" or index == 0:
            table += layout.affine(f"{name}.layer_norm", (*path, "norm"), out)
        into = out
    width = encoder.width
    if encoder.projection_norm:
        norm = ("params", "projection_norm")
        table += layout.affine("feature_projection.layer_norm", norm, into)
    projection = ("params", "projection")
    table += layout.linear("feature_projection.projection", projection, width, into)
    name, path = "encoder.pos_conv_embed.conv", ("params", "position")
    taps, weight = encoder.position_kernel, "parametrizations.weight.original"
    shape = (width, width // encoder.position_groups, taps)
    table += [
        Tensor(f"{name}.bias", (width,), (*path, "bias")),
        Tensor(f"{name}.{weight}0", (1, 1, taps), (*path, "scale"), "flat"),
        Tensor(f"{name}.{weight}1", shape, (*path, "direction"), "conv"),
        *layout.affine("encoder.layer_norm", ("params", "norm"), width),
    ]
    for index in range(encoder.layers):
        table += [
            dataclasses.replace(t, name=f"encoder.layers.{index}.{t.name}", layer=index)
            for t in _layer(encoder)
        ]
    return table


def _layer(encoder: SpeechEncoder) -> list[Tensor]:
    width, path = encoder.width, ("params", "layers")
    rows = []
    for theirs, ours in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("out_proj", "out")):
        rows += layout.linear(f"attention.{theirs}", (*path, ours), width, width)
    return [
        *rows,
        *layout.affine("layer_norm", (*path, "attention_norm"), width),
        *layout.linear("feed_forward.intermediate_dense", (*path, "up"), encoder.ffn_width, width),
        *layout.linear("feed_forward.output_dense", (*path, "down"), width, encoder.ffn_width),
        *layout.affine("final_layer_norm", (*path, "final_norm"), width),
    ]


def from_published(encoder: SpeechEncoder, tensors: Mapping[str, np.ndarray]) -> dict:
    """Published tensors -> {"params"}; heads of training tasks are left out. Raises LayoutError."""
    prefix = f"{encoder.family}."
    bare = {name.removeprefix(prefix): value for name, value in tensors.items()}
    kept = {name: value for name, value in bare.items() if not BESIDE.fullmatch(name)}
    return layout.to_variables(tensor_table(encoder), kept)


def load(path: str | Path) -> tuple[SpeechEncoder, dict]:
    """A Hugging Face folder or hf:OWNER/NAME -> (module, {"params"} of numpy arrays).

    Raises FileNotFoundError, LayoutError or `hub.HubError`, naming the file and what is wrong.
    """
    source = store.locate(path)
    if source.ours or not source.config:
        raise LayoutError(f"{path}: no Hugging Face folder of a HuBERT or wav2vec 2.0 model")
    preparation = source.weights.with_name("preprocessor_config.json")
    standardise = True
    if preparation.is_file():
        standardise = bool(store.read_config(preparation).get("do_normalize", True))
    tensors, _ = store.read_tensors(source.weights)
    try:
        encoder = from_config(source.config, standardise)
        variables = from_published(encoder, tensors)
    except KeyError as error:
        raise LayoutError(f"{source.weights.parent}/config.json: lacks {error}") from error
    except LayoutError as error:
        raise LayoutError(f"{source.weights}: {error}") from error
    return encoder, variables


def save(folder: Path, encoder: SpeechEncoder, variables: Mapping) -> None:
    """Writes a folder that `load` and transformers open: config.json, model.safetensors."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": encoder.family,
        "conv_dim": encoder.conv_channels,
        "conv_kernel": encoder.conv_kernels,
        "conv_stride": encoder.conv_strides,
        "conv_bias": encoder.conv_bias,
        "feat_extract_norm": encoder.conv_norm,
        "feat_proj_layer_norm": encoder.projection_norm,
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.layers,
        "num_attention_heads": encoder.heads,
        "intermediate_size": encoder.ffn_width,
        "num_conv_pos_embeddings": encoder.position_kernel,
        "num_conv_pos_embedding_groups": encoder.position_groups,
        "do_stable_layer_norm": encoder.norm_first,
        "layer_norm_eps": encoder.epsilon,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = layout.to_state_dict(tensor_table(encoder), variables)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    prepare = {"do_normalize": encoder.standardise, "sampling_rate": encoder.sample_rate}
    (folder / "preprocessor_config.json").write_text(json.dumps(prepare, indent=2) + "\n")
