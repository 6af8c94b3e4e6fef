"""GGUF files: a Llama-family or Qwen3 model, dequantised, with its own tokenizer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import jax.numpy as jnp
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from llmcodec_jax.lm.config import ConfigError, LMConfig, family
from llmcodec_jax.lm.damage import damage_named
from llmcodec_jax.lm.tokenizer import TextTokenizer
from llmcodec_jax.lm.weights import assemble

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
"""Hugging Face module -> GGUF name (layers prefixed `blk.N.`)."""

GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL = 3  # the token type of markers such as <|im_end|>


class File:
    """Tensors of a GGUF file under their Hugging Face names and layout."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.label = str(path)
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path}: no such GGUF file")
        self._last: tuple[str, np.ndarray] = ("", np.empty(0))
        with damage_named(self.path):
            self._reader = gguf.GGUFReader(self.path)
            self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
            self.config = self._read_config()

    def field(self, key: str, default: Any = None) -> Any:
        """One metadata value, or `default`; ConfigError where it is missing without one."""
        found = self._reader.fields.get(key)
        if found is not None:
            return found.contents()
        if default is None:
            raise ConfigError(f"{self.path}: metadata {key!r} is missing")
        return default

    def _read_config(self) -> LMConfig:
        row = self._family = family(self.field("general.architecture"), str(self.path), "gguf")
        heads = self.field(f"{row.gguf}.attention.head_count")
        width = self.field(f"{row.gguf}.embedding_length")
        scaling = self.field(f"{row.gguf}.rope.scaling.type", "none")
        if scaling != "none" or "rope_freqs.weight" in self._tensors:
            raise ConfigError(f"{self.path}: rope scaling {scaling!r} is not read from GGUF")
        return LMConfig(
            vocab_size=int(self._tensors["token_embd.weight"].shape[1]),
            width=width,
            layers=self.field(f"{row.gguf}.block_count"),
            heads=heads,
            kv_heads=self.field(f"{row.gguf}.attention.head_count_kv", heads),
            head_dim=self.field(f"{row.gguf}.attention.key_length", width // heads),
            ffn_width=self.field(f"{row.gguf}.feed_forward_length"),
            qk_norm=row.qk_norm,
            tied="output.weight" not in self._tensors,
            rope_theta=float(self.field(f"{row.gguf}.rope.freq_base", 10000.0)),
            norm_eps=float(self.field(f"{row.gguf}.attention.layer_norm_rms_epsilon")),
            family=row.model_type,
            bos_id=self._optional("tokenizer.ggml.bos_token_id"),
            eos_id=self._optional("tokenizer.ggml.eos_token_id"),
            max_positions=self.field(f"{row.gguf}.context_length", 32768),
        )

    def _optional(self, key: str) -> Any:
        """One metadata value, or None."""
        return self.field(key) if key in self._reader.fields else None

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Part `index` of a tensor, float32. The latest tensor stays dequantised."""
        if name != self._last[0]:
            with damage_named(self.path):
                self._last = (name, self._dequantise(name))
        return self._last[1][index]

    def _dequantise(self, name: str) -> np.ndarray:
        module, _, kind = name.rpartition(".")
        layer = re.match(r"model\.layers\.(\d+)\.(.*)", module)
        key = f"blk.{layer[1]}.{NAMES[layer[2]]}" if layer else NAMES[module]
        if f"{key}.{kind}" not in self._tensors:
            raise ConfigError(f"{self.path}: no tensor {key}.{kind}")
        tensor = self._tensors[f"{key}.{kind}"]
        value = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        # Where files interleave each head's rotary pairs: ours are two halves.
        if self._family.interleaved and key.endswith(("attn_q", "attn_k")):
            heads = value.reshape(-1, self.config.head_dim // 2, 2, *value.shape[1:])
            value = heads.swapaxes(1, 2).reshape(value.shape)
        return value

    def tokenizer(self) -> TextTokenizer:
        """The byte-level BPE tokenizer the metadata describes."""
        if self.field("tokenizer.ggml.model") != "gpt2":
            raise ConfigError(f"{self.path}: only byte-level BPE tokenizers are read from GGUF")
        tokens = self.field("tokenizer.ggml.tokens")
        merges = [tuple(pair.split(" ")) for pair in self.field("tokenizer.ggml.merges")]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        tokenizer = Tokenizer(models.BPE(vocabulary, merges))
        tokenizer.pre_tokenizer = self._splitter(self.field("tokenizer.ggml.pre", "gpt-2"))
        tokenizer.decoder = decoders.ByteLevel()
        kinds = self.field("tokenizer.ggml.token_type")
        marks = [t for t, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
        tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in marks])
        template = self._optional("tokenizer.chat_template")
        return TextTokenizer(tokenizer, {"chat_template": template} if template else {})

    def _splitter(self, kind: str) -> pre_tokenizers.PreTokenizer:
        """How text is cut before merging: the rule named by `tokenizer.ggml.pre`."""
        digits = pre_tokenizers.Digits(individual_digits=True)
        rules = {"gpt-2": [], "smollm": [digits], "default": [], "qwen2": []}
        if kind not in rules:
            raise ConfigError(f"{self.path}: pre-tokenizer {kind!r} is not one of {sorted(rules)}")
        split = QWEN2_SPLIT if kind == "qwen2" else GPT2_SPLIT
        parts = [
            *rules[kind],
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
        return pre_tokenizers.Sequence(parts)


def load(path: str | Path, dtype=jnp.bfloat16, shardings=None):
    """GGUF file -> (config, params, tokenizer). Raises ConfigError for what it cannot honour."""
    file = File(path)
    with damage_named(path):
        tokenizer = file.tokenizer()
    return file.config, assemble(file.config, file, dtype, shardings), tokenizer
