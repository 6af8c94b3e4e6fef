"""What a decoder language model looks like: one description for every published source."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from llmcodec_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Family:
    """One published family of decoders, as config, GGUF and export know it."""

    model_type: str  # in config.json
    architecture: str  # class that transformers loads an export with
    qk_norm: bool  # RMSNorm on each query and key head
    gguf: str = ""  # `general.architecture` of its GGUF files; "" where they are not read
    interleaved: bool = False  # its GGUF files keep each head's rotary pairs side by side
    windowed: bool = False  # a `sliding_window` in its config is in force without a switch


FAMILIES = (
    Family("qwen3", "Qwen3ForCausalLM", qk_norm=True, gguf="qwen3"),
    Family("llama", "LlamaForCausalLM", qk_norm=False, gguf="llama", interleaved=True),
    Family("mistral", "MistralForCausalLM", qk_norm=False, windowed=True),
)
"""The families there are: another one of this shape is one row."""


def family(name: Any, source: str, kind: str = "model_type") -> Family:
    """The family that `name` is, by `model_type` or `gguf`. Raises ConfigError listing those."""
    known = {getattr(row, kind): row for row in FAMILIES if getattr(row, kind)}
    if name not in known:
        what = {"gguf": "architecture"}.get(kind, kind)
        raise ConfigError(f"{source}: {what} {name!r} is not one of {', '.join(sorted(known))}")
    return known[name]


class ConfigError(UserError, ValueError):
    """A model description that this project cannot run; the message says which key."""


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Stretching of rotary wavelengths. `kind`: "linear", or "llama3" (Llama 3.1 onwards)."""

    kind: str
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192


@dataclasses.dataclass(frozen=True)
class LMConfig:
    """Architecture of a pre-norm decoder: grouped queries, rotary positions, SwiGLU."""

    vocab_size: int  # rows of the text embedding table
    width: int  # H
    layers: int  # L
    heads: int  # query heads
    kv_heads: int  # key and value heads; divides `heads`
    head_dim: int
    ffn_width: int
    qk_norm: bool  # RMSNorm on each query and key head (Qwen3)
    tied: bool  # the output head is the input table
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    attention_bias: bool = False  # bias on the q, k, v and output projections
    mlp_bias: bool = False
    family: str = "qwen3"  # the `model_type` that export writes
    bos_id: int | None = None
    eos_id: int | None = None
    max_positions: int = 32768  # what export states; nothing here depends on it

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise ConfigError(f"{self.heads} query heads cannot share {self.kv_heads} key heads")
        if self.head_dim % 2:
            raise ConfigError(f"rotary positions need an even head_dim, not {self.head_dim}")

    @property
    def aligned_layers(self) -> tuple[int, int]:
        """[start, stop) of the aligned layers: L/3 <= l < floor(0.8 L); 36 -> (12, 28)."""
        return math.ceil(self.layers / 3), max(int(0.8 * self.layers), math.ceil(self.layers / 3))


def small_config(
    vocab_size: int, width: int, layers: int, bos_id: int | None = None, eos_id: int | None = None
) -> LMConfig:
    """A Qwen3 of a few million parameters, for LMs that are trained from scratch here."""
    heads = max(width // 64, 1)
    return LMConfig(
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        ffn_width=3 * width,
        qk_norm=True,
        tied=True,
        bos_id=bos_id,
        eos_id=eos_id,
    )


def from_huggingface(raw: Mapping[str, Any], source: str = "config.json") -> LMConfig:
    """A transformers `config.json` (version 4 or 5 style) -> LMConfig.

    Version 4 writes `rope_theta` and `rope_scaling` at the top, version 5 a `rope_parameters`
    table. Raises ConfigError naming `source` and the key that cannot be honoured.
    """
    row = family(raw.get("model_type"), source)
    if raw.get("use_sliding_window") or (row.windowed and raw.get("sliding_window")):
        raise ConfigError(f"{source}: sliding-window attention is not supported")
    if raw.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"{source}: hidden_act {raw['hidden_act']!r} is not supported")
    missing = {"vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size"} - set(raw)
    if missing:
        raise ConfigError(f"{source}: {', '.join(sorted(missing))} missing")
    heads = raw["num_attention_heads"]
    theta, scaling = _rope(raw, source)
    return LMConfig(
        vocab_size=raw["vocab_size"],
        width=raw["hidden_size"],
        layers=raw["num_hidden_layers"],
        heads=heads,
        kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        ffn_width=raw["intermediate_size"],
        qk_norm=row.qk_norm,
        tied=bool(raw.get("tie_word_embeddings", False)),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        attention_bias=bool(raw.get("attention_bias", False)),
        mlp_bias=bool(raw.get("mlp_bias", False)),
        family=row.model_type,
        bos_id=raw.get("bos_token_id"),
        eos_id=_one_id(raw.get("eos_token_id")),
        max_positions=raw.get("max_position_embeddings", 32768),
    )


def _one_id(ids: int | list[int] | None) -> int | None:
    """The first of the ids that a config may list."""
    return ids[0] if isinstance(ids, list) else ids


def _rope(raw: Mapping[str, Any], source: str) -> tuple[float, RopeScaling | None]:
    """Base and stretching from either published style."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling("linear", float(rope["factor"]))
    if kind == "llama3":
        return theta, RopeScaling(
            "llama3",
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            int(rope["original_max_position_embeddings"]),
        )
    raise ConfigError(f"{source}: rope_type {kind!r} is not one of default, linear, llama3")


def to_huggingface(config: LMConfig, dtype: str) -> dict[str, Any]:
    """LMConfig -> `config.json` that transformers 4 and 5 both read (`dtype`: "float32", ...).

    Raises ConfigError for a family that no row describes.
    """
    scaling = config.rope_scaling
    rope: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        rope = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling is not None and scaling.kind == "llama3":
        rope |= {
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_length,
        }
    return {
        "architectures": [family(config.family, "export").architecture],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tied,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else rope,
        "rope_parameters": rope | {"rope_theta": config.rope_theta},
        "max_position_embeddings": config.max_positions,
        "bos_token_id": config.bos_id,
        "eos_token_id": config.eos_id,
        "torch_dtype": dtype,
        "dtype": dtype,
        "use_sliding_window": False,
    }
