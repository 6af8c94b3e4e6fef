"""A decoder language model over audio codes: made small, or from a pretrained text model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from llmcodec_jax.lm import decoder
from llmcodec_jax.lm.config import LMConfig, small_config
from llmcodec_jax.lm.load import load_lm
from llmcodec_jax.lm.lora import LoRA, init_lora
from llmcodec_jax.lm.reading import Reading
from llmcodec_jax.lm.tokenizer import TextTokenizer
from llmcodec_jax.lm.vocab import audio_embedding_init, audio_head_init, read_audio_rows

SAVED = "audio_lm.npz"
ONE_LEVEL = Reading()
LORA = {"rank": 64, "alpha": 128.0, "dropout": 0.05, "targets": r"(q|k|v|o|gate|up|down)_proj"}


@flax.struct.dataclass
class AudioLM:
    """`body` reads a begin vector, then codes; the softmax runs over audio codes only."""

    body: Any  # decoder parameters (lm.qwen3)
    begin: jax.Array  # [H], fixed: the first position of every sequence
    embedding: jax.Array  # float32 [L * V, H], L levels that it reads
    head: jax.Array  # float32 [L * V, H]
    lora: LoRA | None
    config: LMConfig = flax.struct.field(pytree_node=False)
    reading: Reading = flax.struct.field(pytree_node=False, default=ONE_LEVEL)

    @property
    def levels(self) -> int:
        """Codes of a frame that it reads."""
        return self.reading.levels

    def trainable(self) -> dict:
        """What training moves: everything, or adapters and audio rows of a pretrained body."""
        rows = {"embedding": self.embedding, "head": self.head}
        if self.lora is not None:
            return rows | {"lora": self.lora.weights}
        return rows | {"body": self.body}

    def with_trainable(self, values: dict) -> AudioLM:
        """The same model with other trainable values."""
        rows = {"embedding": values["embedding"], "head": values["head"]}
        if self.lora is not None:
            return self.replace(**rows, lora=self.lora.replace(weights=values["lora"]))
        return self.replace(**rows, body=values["body"])


def small(vocabulary: int, reading: Reading, width: int, layers: int, key: jax.Array) -> AudioLM:
    """A fresh decoder; its body depends on the key alone, so every codec starts from the same."""
    config = small_config(1, width, layers)  # its text table is the begin vector
    body_key, row_key = jax.random.split(key)
    body = decoder.init_to_train(config, body_key)
    rows = 0.02 * jax.random.normal(row_key, (vocabulary, width))
    return AudioLM(
        body, body["embed"]["embedding"][0], rows, jnp.zeros_like(rows), None, config, reading
    )


def pretrained(path: str | Path, vocabulary: int, reading: Reading, key: jax.Array) -> AudioLM:
    """A text model with LoRA on all linear layers and fresh audio rows.

    The rows start from the text rows' distribution for every codec, never from rows that one
    codec was trained with: that head start is what confounds published comparisons (method.md 8).
    """
    config, body, tokenizer = load_lm(path, jnp.float32)
    row_key, head_key, lora_key = jax.random.split(key, 3)
    embedding = audio_embedding_init(body["embed"]["embedding"], vocabulary, row_key)
    head = audio_head_init(body, embedding, head_key)
    adapters = init_lora(body, lora_key, **LORA)
    begin = decoder.embed_text(body, jnp.asarray(begin_token(config, tokenizer)))
    return AudioLM(body, begin, embedding, head, adapters, config, reading)


def merged(path: str | Path, reading: Reading = ONE_LEVEL, begin: int | None = None) -> AudioLM:
    """A model folder whose vocabulary holds `<CODEC_i>` (`export --format hf`), as it is.

    `reading`: how it was trained to read a codec's levels (`lm.reads` of its run).
    `begin`: id of the token that opened sequences in training, by default `begin_token`.
    """
    config, body, tokenizer = load_lm(path, jnp.float32)
    embedding, head = read_audio_rows(path)
    if begin is None:
        begin = begin_token(config, tokenizer)
    first = decoder.embed_text(body, jnp.asarray(begin))
    return AudioLM(body, first, embedding, head, None, config, reading)


def begin_token(config: LMConfig, tokenizer: TextTokenizer | None) -> int:
    """BOS where the model has one, else <|endoftext|>, else the first token."""
    if config.bos_id is not None:
        return config.bos_id
    end = tokenizer.token_id("<|endoftext|>") if tokenizer is not None else None
    return 0 if end is None else end


def token_log_probs(
    model: AudioLM, codes: jax.Array, lengths: jax.Array, dropout_key: jax.Array | None = None
) -> jax.Array:
    """Log-probability of every code given those before it, float32 [B, N].

    codes int [B, N], whole frames of L codes; values past lengths int [B] mean nothing. Only the
    codes of one level compete. Where all of a frame are read at one position, "before" means in
    earlier frames: the codes of a frame do not see each other.
    """
    batch, length = codes.shape
    levels, places = model.levels, model.reading.places
    begin = jnp.broadcast_to(model.begin, (batch, 1, model.begin.shape[-1]))
    rows = model.embedding[codes.reshape(batch, -1, levels // places)].sum(axis=2)
    inputs = jnp.concatenate([begin, rows[:, :-1].astype(begin.dtype)], axis=1)
    hidden = decoder.forward(
        model.config,
        model.body,
        inputs,
        lengths * places // levels,
        remat=model.lora is not None,
        lora=model.lora,
        dropout_key=dropout_key,
    ).hidden
    size = len(model.head) // levels
    hidden = hidden.reshape(batch, length // levels, places, -1).astype(jnp.float32)
    hidden = jnp.broadcast_to(hidden, (*hidden.shape[:2], levels, hidden.shape[-1]))
    logits = jnp.einsum("bfqh,qvh->bfqv", hidden, model.head.reshape(levels, size, -1))
    chosen = (codes % size).reshape(batch, length // levels, levels, 1)
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), chosen, axis=-1)
    return log_probs.reshape(batch, length)


def save(path: str | Path, model: AudioLM) -> None:
    """Writes a small model (no adapters) as `audio_lm.npz` in a folder, for `load`."""
    flat = traverse_util.flatten_dict(model.body, sep="/")
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    arrays = {f"body/{name}": np.asarray(value) for name, value in flat.items()}
    shape = json.dumps(dataclasses.asdict(model.config) | dataclasses.asdict(model.reading))
    np.savez(
        path / SAVED,
        embedding=np.asarray(model.embedding),
        head=np.asarray(model.head),
        begin=np.asarray(model.begin),
        shape=shape,
        **arrays,
    )


def load(path: str | Path, reading: Reading = ONE_LEVEL, begin: int | None = None) -> AudioLM:
    """A folder that `save` wrote, which knows its reading, or a merged model folder."""
    path = Path(path)
    if not (path / SAVED).exists():
        return merged(path, reading, begin)
    with np.load(path / SAVED) as file:
        shape = json.loads(str(file["shape"]))
        body = {n.removeprefix("body/"): file[n] for n in file.files if n.startswith("body/")}
        rows = {name: jnp.asarray(file[name]) for name in ("begin", "embedding", "head")}
    levels = shape.pop("levels")
    saved = Reading(levels, shape.pop("places", levels))  # older ones read their codes flat
    body = jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(body, sep="/"))
    return AudioLM(body=body, **rows, lora=None, config=LMConfig(**shape), reading=saved)
