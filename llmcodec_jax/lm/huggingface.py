"""Hugging Face folders: streamed import, and export with the audio vocabulary merged in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from llmcodec_jax.lm.config import ConfigError, LMConfig, from_huggingface, to_huggingface
from llmcodec_jax.lm.damage import damage_named
from llmcodec_jax.lm.tokenizer import TextTokenizer
from llmcodec_jax.lm.weights import assemble, unstacked

SHARD_BYTES = 4 << 30


class Folder:
    """The safetensors of a model folder: one file, or an index of shards; memory-mapped."""

    def __init__(self, folder: str | Path):
        self.folder, self.label = Path(folder), str(folder)
        index, single = self.folder / "model.safetensors.index.json", "model.safetensors"
        if index.exists():
            with damage_named(index):
                self.files = dict(json.loads(index.read_text())["weight_map"])
        elif (self.folder / single).exists():
            path = self.folder / single
            with damage_named(path), safe_open(path, "np") as file:
                self.files = dict.fromkeys(file.keys(), single)
        else:
            raise FileNotFoundError(f"{self.folder}: neither {single} nor {index.name} here")
        self._open: dict[Path, Any] = {}

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Part `index` of tensor `name`; only its bytes leave the memory map."""
        if name not in self.files:
            raise ConfigError(f"{self.folder}: no tensor {name!r} in its safetensors")
        path = self.folder / self.files[name]
        if path not in self._open:
            with damage_named(path):
                self._open[path] = safe_open(path, "np")
        with damage_named(path):
            return self._open[path].get_slice(name)[index]


def read_config(folder: str | Path) -> LMConfig:
    """`config.json` of a folder -> LMConfig. Raises FileNotFoundError or ConfigError."""
    path = Path(folder) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path}: a Hugging Face model folder needs this file")
    with damage_named(path):
        return from_huggingface(json.loads(path.read_text()), str(path))


def load(folder: str | Path, dtype=jnp.bfloat16, shardings=None) -> tuple[LMConfig, Any]:
    """Folder -> (config, params); see `lm.qwen3.load_qwen3`.

    A checkpoint that holds `lm_head.weight` although it says it is tied is read as tied.
    """
    config = read_config(folder)
    return config, assemble(config, Folder(folder), dtype, shardings)


def export(
    folder: str | Path,
    config: LMConfig,
    params: Any,
    tokenizer: TextTokenizer | None = None,
    audio_embedding: Any = None,
    audio_head: Any = None,
) -> None:
    """Writes a folder that transformers loads, with `<CODEC_i>` merged in where given.

    `audio_embedding` and `audio_head` are [V, H]; they need a `tokenizer`. Token `<CODEC_i>`
    gets id `len(tokenizer) + i`, as `add_tokens` and `resize_token_embeddings` would give it:
    rows that merely padded the text table past its tokenizer are cut. The merged model is
    untied whenever its head rows differ from its input rows, so that neither trained matrix
    overwrites the other. Nothing in `params` is changed. Raises ValueError for lone audio
    rows or a missing tokenizer.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text_rows = config.vocab_size
    merged = audio_embedding is not None
    if merged != (audio_head is not None):
        raise ValueError("audio_embedding and audio_head are exported together or not at all")
    if merged:
        if tokenizer is None:
            raise ValueError("audio tokens cannot be merged into a model without its tokenizer")
        text_rows = len(tokenizer)
        if text_rows > config.vocab_size:
            raise ValueError(f"{text_rows} text tokens but only {config.vocab_size} rows")
        audio_embedding, audio_head = np.asarray(audio_embedding), np.asarray(audio_head)
        tokenizer = tokenizer.with_tokens(codec_tokens(len(audio_embedding)))
    pairs = _rows(config, params, text_rows, audio_embedding, audio_head)
    tied = config.tied and (not merged or np.array_equal(audio_embedding, audio_head))
    if tied:
        pairs = (pair for pair in pairs if pair[0] != "lm_head.weight")
    rows = text_rows + (len(audio_embedding) if merged else 0)
    _write_shards(folder, pairs)
    dtype = jnp.dtype(params["embed"]["embedding"].dtype).name
    table = to_huggingface(config, dtype) | {"vocab_size": rows, "tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps(table, indent=2) + "\n")
    if tokenizer is not None:
        tokenizer.save(folder)


def codec_tokens(size: int) -> list[str]:
    """The names of the audio tokens, in code order."""
    return [f"<CODEC_{index}>" for index in range(size)]


def _rows(config, params, text_rows, audio_embedding, audio_head) -> Iterator:
    """All tensors of the merged model; a tied model's head is written out beside its table."""
    for name, value in unstacked(params):
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            continue
        yield name, value
    table = np.asarray(params["embed"]["embedding"])[:text_rows]
    head = table if config.tied else np.asarray(params["lm_head"]["kernel"]).T[:text_rows]
    if audio_embedding is not None:
        table = np.concatenate([table, audio_embedding.astype(table.dtype)])
        head = np.concatenate([head, audio_head.astype(head.dtype)])
    yield "model.embed_tokens.weight", table
    yield "lm_head.weight", np.ascontiguousarray(head)


def _write_shards(folder: Path, pairs: Iterator[tuple[str, np.ndarray]]) -> None:
    """Writes tensors as they come, at most `SHARD_BYTES` in memory, with an index if needed."""
    for stale in folder.glob("model*.safetensors*"):
        stale.unlink()
    shards: list[dict[str, int]] = []
    pending: dict[str, np.ndarray] = {}

    def flush():
        path = folder / f"model-{len(shards) + 1:05d}.safetensors"
        save_file(pending, path, metadata={"format": "pt"})
        shards.append({name: value.nbytes for name, value in pending.items()})
        pending.clear()

    for name, value in pairs:
        if pending and sum(v.nbytes for v in pending.values()) + value.nbytes > SHARD_BYTES:
            flush()
        pending[name] = value
    flush()
    if len(shards) == 1:
        (folder / "model-00001.safetensors").rename(folder / "model.safetensors")
        return
    weight_map = {}
    for number, sizes in enumerate(shards, 1):
        final = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"model-{number:05d}.safetensors").rename(folder / final)
        weight_map |= dict.fromkeys(sizes, final)
    total = sum(sum(sizes.values()) for sizes in shards)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def read_audio_rows(folder: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """The `<CODEC_i>` input and head rows [V, H] of a merged folder, float32.

    Raises ConfigError where the folder's tokenizer has no `<CODEC_0>`.
    """
    tokenizer = TextTokenizer.from_file(Path(folder) / "tokenizer.json")
    ids = []
    while (token := tokenizer.token_id(f"<CODEC_{len(ids)}>")) is not None:
        ids.append(token)
    if not ids:
        raise ConfigError(f"{folder}: its tokenizer has no <CODEC_0>; not a merged model")
    source, config = Folder(folder), read_config(folder)
    index = (slice(ids[0], ids[-1] + 1), slice(None))
    table = source.read("model.embed_tokens.weight", index).astype(np.float32)
    head = table if config.tied else source.read("lm_head.weight", index).astype(np.float32)
    return table, head
