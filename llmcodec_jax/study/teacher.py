"""The study's frozen LM: part of a text LM, taught the base codec's tokens.

A text model that never met an audio token says little about which token comes next, so its
gradient is worth little. Here it first learns the base codec's tokens, alone and after their
transcripts; then it is frozen, written as a Hugging Face folder with `<CODEC_i>` merged in, and
every variant trains against the same one.

With time to spare it is the text model's own first layers. On two cores it is a narrow fresh
decoder that reads the text model's embeddings through their principal components. With a body
learning rate of 0 it is the paper's case: a text model whose audio rows and heads alone are taught.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from llmcodec_jax.errors import UsageError
from llmcodec_jax.evaluation.audio_lm import begin_token
from llmcodec_jax.evaluation.streams import Streams
from llmcodec_jax.lm import decoder, huggingface
from llmcodec_jax.lm.config import LMConfig, small_config
from llmcodec_jax.lm.heads import horizon_weights, repeat_rows, save_heads
from llmcodec_jax.lm.load import load_lm
from llmcodec_jax.lm.tokenizer import TextTokenizer
from llmcodec_jax.lm.vocab import audio_embedding_init, audio_head_init
from llmcodec_jax.losses.ftp import ftp_loss


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """How the LM is taught."""

    path: str = "embedded"  # Hugging Face folder or .gguf; "embedded": SmolLM2-135M-Instruct
    width: int = 0  # of a fresh decoder on its embeddings; 0 keeps its own layers
    layers: int = 4  # of the fresh decoder; or how many of its own are kept, 0 all
    steps: int = 300
    batch: int = 16  # clips a step
    seconds: float = 3.0  # of a clip
    max_text: int = 32  # tokens of a transcript
    text_share: float = 0.5  # of the clips that follow their transcript
    horizons: int = 5  # future-token heads it learns with
    learning_rate: float = 3e-3  # of audio rows and heads
    body_learning_rate: float = 5e-4  # of the layers; 0 freezes them, a model that knows only text


def first_layers(path: str | Path, layers: int) -> tuple[LMConfig, Any, TextTokenizer]:
    """The embedding, the first `layers` layers (0 all) and the last norm of a model, float32.

    Raises ValueError where it has no tokenizer or fewer layers.
    """
    config, params, tokenizer = load_lm(path, jnp.float32)
    if tokenizer is None:
        raise UsageError(f"{path}: no tokenizer.json; alignment needs text")
    layers = layers or config.layers
    if not 1 <= layers <= config.layers:
        raise UsageError(f"{path} has {config.layers} layers, cannot keep {layers}")
    blocks = jax.tree.map(lambda stacked: stacked[:layers], params["blocks"])
    return dataclasses.replace(config, layers=layers), params | {"blocks": blocks}, tokenizer


def fresh_layers(path: str | Path, width: int, layers: int, key) -> tuple[LMConfig, Any, Any]:
    """A decoder from scratch that reads the model's text embeddings, reduced to `width` channels.

    The principal components keep as much of the table as fits. Raises ValueError as above.
    """
    source, params, tokenizer = first_layers(path, 1)
    if not width <= source.width or width % 64:
        raise UsageError(f"width {width} must be a multiple of 64, at most {source.width}")
    table = params["embed"]["embedding"]
    centred = table - table.mean(axis=0)
    _, axes = jnp.linalg.eigh(centred.T @ centred)  # by rising variance
    config = small_config(source.vocab_size, width, layers, source.bos_id, source.eos_id)
    fresh = decoder.init_to_train(config, key)
    return config, fresh | {"embed": {"embedding": centred @ axes[:, -width:]}}, tokenizer


def train_teacher(
    path: str | Path,
    folder: Path,
    tokens: Streams,
    texts: dict[str, str],
    config: TeacherConfig,
    seed: int = 0,
) -> dict:
    """Teaches the LM at `path` and writes it to `folder`; -> {"nats", "curve": [(step, nats)]}.

    All heads that were taught lie beside it, for `lm.heads.start_heads`. Held-out clips only
    measure, unseen voices are left alone; texts: name of a clip -> transcript. "nats" is head 1's
    held-out cross-entropy without any transcript. Codes of several levels are taught in turn.
    """
    key = jax.random.key(seed)
    if config.width:
        lm_config, params, tokenizer = fresh_layers(path, config.width, config.layers, key)
    else:
        lm_config, params, tokenizer = first_layers(path, config.layers)
    begin = begin_token(lm_config, tokenizer)
    frames = round(config.seconds * tokens.frame_rate)
    ids = {name: tokenizer.encode(text) for name, text in texts.items() if name in tokens.clips}
    ids = {name: text for name, text in ids.items() if len(text) <= config.max_text}
    held_out = sorted(tokens.held_out)
    training = sorted(set(tokens.clips) - set(held_out) - tokens.unseen)
    rows = functools.partial(_rows, tokens, ids, begin, frames, config)
    generator = np.random.default_rng(seed)
    fixed = np.random.default_rng(seed + 1)
    looks = [rows(held_out, fixed, 0.0) for _ in range(8)]

    values, fixed = _start(lm_config, params, tokens.vocabulary, config, key)
    optimiser = _optimiser(config)
    state = optimiser.init(values)
    update = jax.jit(functools.partial(_update, lm_config, optimiser), donate_argnums=(1, 2))
    measure = jax.jit(functools.partial(_losses, lm_config))
    curve = []
    for step in tqdm(range(config.steps + 1), "teaching the LM", unit="step"):
        if step % max(config.steps // 10, 1) == 0 or step == config.steps:
            found = [measure(fixed, values, look)["ftp/1"] for look in looks]
            curve.append((step, float(sum(s for s, _ in found) / sum(n for _, n in found))))
        if step < config.steps:
            batch = rows(training, generator, config.text_share)
            values, state = update(fixed, values, state, batch)
    huggingface.export(
        folder,
        lm_config,
        fixed | values.get("body", {}),
        tokenizer,
        values["embedding"],
        values["heads"][0],
    )
    save_heads(folder, values["heads"])
    return {"nats": curve[-1][1], "curve": curve}


def _start(
    lm_config: LMConfig, params, vocabulary: int, config: TeacherConfig, key
) -> tuple[dict, dict]:
    """-> (what is taught: audio rows, heads, and layers and norm unless frozen; what stays)."""
    embedding = audio_embedding_init(params["embed"]["embedding"], vocabulary, key)
    # On layers from scratch, heads that copy the rows would say that every code comes again.
    head = jnp.zeros_like(embedding) if config.width else audio_head_init(params, embedding, key)
    heads = repeat_rows(head, config.horizons)
    rows = {"embedding": embedding, "heads": heads}
    if not config.body_learning_rate:
        return rows, params
    body = {name: value for name, value in params.items() if name != "embed"}
    return rows | {"body": body}, {"embed": params["embed"]}


def _optimiser(config: TeacherConfig):
    def adam(peak: float):
        warmup = max(config.steps // 20, 1)
        schedule = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, config.steps)
        return optax.adamw(schedule, weight_decay=0.01)

    parts = {"rows": adam(config.learning_rate)}
    labels = {"embedding": "rows", "heads": "rows"}
    if config.body_learning_rate:
        parts |= {"body": adam(config.body_learning_rate)}
        labels |= {"body": "body"}
    return optax.chain(optax.clip_by_global_norm(1.0), optax.multi_transform(parts, labels))


def _rows(
    tokens: Streams, texts, begin: int, frames: int, config: TeacherConfig, names, generator, share
) -> dict:
    """Random clips as rows of text ids and codes: begin, perhaps the transcript, the codes.

    A crop of `frames` frames goes without text: its words are not known. `share`: of the clips
    that follow their transcript.
    """
    most = frames * tokens.levels
    size = 1 + config.max_text + most
    batch = {
        "ids": np.full((config.batch, size), begin, np.int32),
        "spoken": np.zeros((config.batch, size), bool),
        "length": np.zeros(config.batch, np.int32),
    }
    for row in range(config.batch):
        name = names[generator.integers(len(names))]
        codes = tokens.clips[name]
        start = generator.integers(max(len(codes) // tokens.levels - frames, 0) + 1)
        text = texts.get(name, ()) if generator.random() < share else ()
        text = text if len(codes) <= most else ()
        codes = codes[start * tokens.levels :][:most]
        end = 1 + len(text) + len(codes)
        batch["ids"][row, 1:end] = np.concatenate([text, codes])
        batch["spoken"][row, 1 + len(text) : end] = True
        batch["length"][row] = end
    return batch


def _losses(config: LMConfig, fixed: dict, values: dict, batch: dict) -> dict:
    ids, spoken = batch["ids"], batch["spoken"]
    codes = jnp.where(spoken, ids, 0)
    text = fixed["embed"]["embedding"][jnp.where(spoken, 0, ids)]
    embeds = jnp.where(spoken[..., None], values["embedding"][codes], text)
    params = fixed | values.get("body", {})
    hidden = decoder.forward(config, params, embeds, batch["length"], remat=False).hidden
    return ftp_loss(hidden[:, :-1], values["heads"], codes[:, 1:], spoken[:, 1:])


def _update(config: LMConfig, optimiser, fixed, values, state, batch):
    def loss(values):
        losses = _losses(config, fixed, values, batch)
        weights = enumerate(horizon_weights(len(values["heads"])), start=1)
        parts = ((w, *losses[f"ftp/{k}"]) for k, w in weights)
        return sum(w * total / jnp.maximum(count, 1) for w, total, count in parts)

    updates, state = optimiser.update(jax.grad(loss)(values), state, values)
    return optax.apply_updates(values, updates), state
