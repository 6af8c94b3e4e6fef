"""How predictable are a codec's tokens? One protocol for every codec (method.md 8).

Every codec's language model takes the same number of steps on the same stretches of the same
clips in the same order, from the same start, with a softmax over audio codes only. Several seeds
give an interval; a development split picks the step, a test split gives the number.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from llmcodec_jax.evaluation import audio_lm, look_ahead
from llmcodec_jax.evaluation.audio_lm import AudioLM
from llmcodec_jax.evaluation.protocol import TokenLMProtocol
from llmcodec_jax.evaluation.sampling import by_hash
from llmcodec_jax.evaluation.streams import (
    StartEncoder,
    Streams,
    first_levels,
    flags,
    statistics_of,
    unigram_nats,
)
from llmcodec_jax.lm.reading import reading


@flax.struct.dataclass
class Stretches:
    """Fixed-size pieces of clips."""

    codes: np.ndarray  # int32 [count, tokens]
    lengths: np.ndarray  # int32 [count]

    def rows(self) -> list[np.ndarray]:
        """The stretches without their padding."""
        return [row[:length] for row, length in zip(self.codes, self.lengths, strict=True)]


def report(
    streams: Streams,
    protocol: TokenLMProtocol,
    lm: str | Path | None = None,
    reconstruction: dict | None = None,
    save: Path | None = None,
    encode_start: StartEncoder | None = None,
) -> dict:
    """The whole comparison of one codec: never a perplexity without what could have bought it.

    `lm`: a pretrained text model to tune with LoRA under the same protocol. `reconstruction`:
    mean metrics of the codec's audio. `save`: folder for the first seed's small model.
    `encode_start`: the codec, where it is at hand, for the share without look-ahead.
    """
    read = reading(protocol.reads, streams.levels)
    if read.levels < streams.levels:
        streams, encode_start = first_levels(streams, read.levels, encode_start)
    training, development, test = streams.split()
    _, stretches = held_out(streams, protocol)
    unigram, baseline = statistics_of(streams, training, stretches.rows())
    probes = None
    if encode_start is not None and protocol.probes:
        probes = look_ahead.make_probes(streams, protocol, test, baseline, encode_start)
    start = functools.partial(
        audio_lm.small, streams.vocabulary, read, protocol.width, protocol.layers
    )
    content = {
        "protocol": dataclasses.asdict(protocol),
        "stream": {
            "codebook_size": streams.codebook_size,
            "levels": streams.levels,
            "positions_per_second": streams.frame_rate * read.places,
            "tokens_per_second": streams.tokens_per_second,
            "bits_per_second": streams.tokens_per_second * math.log2(streams.codebook_size),
            "tokens": sum(map(len, streams.clips.values())),
            "clips": [len(training), len(development), len(test)],
        },
        "unigram": unigram,
        "small_lm": measure(streams, protocol, start, save, probes),
        "pretrained_lm": None,
        "reconstruction": reconstruction,
        "flags": flags(streams, unigram, reconstruction),
    }
    if lm is not None:
        pretrained = functools.partial(audio_lm.pretrained, lm, streams.vocabulary, read)
        content["pretrained_lm"] = measure(streams, protocol, pretrained, None, probes)
    for part in (content["small_lm"], content["pretrained_lm"]):
        if part is not None:
            part["gain_over_unigram"] = unigram["nats"] - part["nats_per_token"]["mean"]
        if part is not None and streams.unseen:
            rows = unseen_stretches(streams, protocol).rows()
            nats_of = unigram_nats(streams, training, rows)[np.concatenate(rows)]
            mean = part["unseen_nats_per_token"]["mean"]
            part["unseen_gain_over_unigram"] = float(nats_of.mean()) - mean
    return content


def summary(report: dict) -> Iterator[str]:
    """A report as lines for the terminal, its warnings first."""
    for flag in report["flags"]:
        yield f"WARNING {flag}"
    for title, part in (("small LM", report["small_lm"]), ("LoRA LM", report["pretrained_lm"])):
        if part is None:
            continue
        value, spread = part["nats_per_token"]["mean"], part["nats_per_token"]["deviation"]
        new = part["new_nats_per_token"]["mean"]
        yield (
            f"{title}: {value:.4f} nats/token"
            + (f" ± {spread:.4f} over {len(part['seeds'])} seeds" if spread else "")
            + (f" ({new:.4f} of those that repeat nothing)" if new is not None else "")
            + f", {part['bits_per_second']['mean']:.1f} bits/s,"
            f" gain over unigram {part['gain_over_unigram']:.4f}"
        )
        if found := part["look_ahead"]:
            yield f"{title}: gain left without look-ahead {look_ahead.in_words(found)}"
    unigram = report["unigram"]
    yield (
        f"unigram entropy {unigram['entropy']:.4f} nats, code use {unigram['effective']:.1%}, "
        f"repeats {unigram['repeats']:.1%}"
    )
    yield f"reconstruction: {json.dumps(report['reconstruction'])}"


def measure(
    streams: Streams,
    protocol: TokenLMProtocol,
    make: Callable[[jax.Array], AudioLM],
    save: Path | None = None,
    probes: look_ahead.Probes | None = None,
) -> dict:
    """Trains `make(key)` once a seed -> nats per token, bits per second, their spread.

    `make` builds the starting model from a key; the same key gives every codec the same start.
    `look_ahead` is the mean over seeds of `look_ahead.measure` at `probes`.
    """
    runs, probed = [], []
    for seed in protocol.seeds:
        run, model = train(streams, protocol, make, seed)
        if probes is not None:
            probed.append(look_ahead.measure(model, probes, protocol.batch))
        if save is not None and not runs:
            audio_lm.save(save, model)
        runs.append(run)
    to_bits = streams.tokens_per_second / math.log(2)
    apart = ("unseen_nats", "unseen_new_nats") if streams.unseen else ()
    return {
        **{
            f"{name}_per_token": _spread([run[name] for run in runs])
            for name in ("nats", "new_nats", *apart)
        },
        "bits_per_second": _spread([run["nats"] * to_bits for run in runs]),
        "seeds": runs,
        "look_ahead": look_ahead.summarise(probes, probed) if probes is not None else None,
    }


def measure_with_rows_of(donor: AudioLM, streams: Streams, protocol: TokenLMProtocol) -> dict:
    """`measure` of a small LM whose audio rows are a trained one's, the rest fresh.

    What published comparisons give to their own codec alone (method.md 8): on the tokens that
    `donor` learned, the difference from `measure` is worth nothing but the start.
    """

    def make(key: jax.Array) -> AudioLM:
        width, layers = donor.config.width, donor.config.layers
        fresh = audio_lm.small(len(donor.head), donor.reading, width, layers, key)
        return fresh.replace(embedding=donor.embedding, head=donor.head)

    return measure(streams, protocol, make)


def train(
    streams: Streams, protocol: TokenLMProtocol, make: Callable[[jax.Array], AudioLM], seed: int
) -> tuple[dict, AudioLM]:
    """One seed: {"nats", "new_nats": on the test split, by `score`, "development", "step": the best
    look, "curve"}, and the first two with "unseen_" in front where voices stand apart."""
    training = streams.split()[0]
    size = stretch_size(streams, protocol)
    development, test = held_out(streams, protocol)
    key = jax.random.key(seed)
    model = make(key)
    optimiser, update = _optimiser(protocol, model.lora is not None)
    values = model.trainable()
    state = optimiser.init(values)
    batches = training_stretches(streams, training, size, protocol, seed)
    looks = np.unique(np.linspace(0, protocol.steps, protocol.evaluations + 1).round().astype(int))
    curve, best, chosen = [], math.inf, values
    for step in tqdm(range(protocol.steps + 1), f"token LM, seed {seed}", unit="step"):
        if step in looks:
            loss = nats(model.with_trainable(values), development, protocol.batch)
            curve.append((int(step), loss))
            if loss < best:
                best, chosen = loss, values
        if step < protocol.steps:
            dropout_key = jax.random.fold_in(key, step)
            values, state = update(model, values, state, next(batches), dropout_key)
    model = model.with_trainable(chosen)
    run = {
        "seed": seed,
        **score(model, test, protocol.batch),
        "development": best,
        "step": min(step for step, loss in curve if loss == best),
        "curve": curve,
    }
    if streams.unseen:
        found = score(model, unseen_stretches(streams, protocol), protocol.batch)
        run |= {f"unseen_{name}": value for name, value in found.items()}
    return run, model


@functools.cache
def _optimiser(protocol: TokenLMProtocol, tuned: bool):
    """The optimiser and its compiled update, shared by all seeds."""
    rate = protocol.lora_learning_rate if tuned else protocol.learning_rate
    steps = max(protocol.steps, 2)  # a schedule has a rise and a fall
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(steps // 10, 1), steps)
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, weight_decay=protocol.weight_decay),
    )
    return optimiser, jax.jit(functools.partial(_update, optimiser))


def _update(optimiser, model: AudioLM, values, state, batch: Stretches, key):
    def loss(values):
        current = model.with_trainable(values)
        dropout_key = key if model.lora is not None else None
        log_probs = audio_lm.token_log_probs(current, batch.codes, batch.lengths, dropout_key)
        valid = jnp.arange(log_probs.shape[1]) < batch.lengths[:, None]
        return -jnp.sum(log_probs * valid) / jnp.maximum(jnp.sum(valid), 1)

    updates, state = optimiser.update(jax.grad(loss)(values), state, values)
    return optax.apply_updates(values, updates), state


def nats(model: AudioLM, stretches: Stretches, batch: int) -> float:
    """Mean negative log-likelihood per token over all stretches."""
    return score(model, stretches, batch)["nats"]


def score(model: AudioLM, stretches: Stretches, batch: int) -> dict[str, float | None]:
    """Mean negative log-likelihood per token: "nats" of all, "new_nats" of those that differ from
    their level's code one frame before. None where there is none of a kind.

    A codec can lower the first by repeating itself more; the second says what is left of that.
    """
    total, count = np.zeros(2), np.zeros(2)
    for start in range(0, len(stretches.codes), batch):
        codes = stretches.codes[start : start + batch]
        lengths = stretches.lengths[start : start + batch]
        missing = batch - len(codes)  # the last batch keeps the compiled shape
        codes = np.pad(codes, ((0, missing), (0, 0)))
        lengths = np.pad(lengths, (0, missing))
        sums, counts = jax.device_get(_summed_log_probs(model, codes, lengths))
        total, count = total + sums, count + counts
    means = (float(-t / n) if n else None for t, n in zip(total, count, strict=True))
    return dict(zip(("nats", "new_nats"), means, strict=True))


@jax.jit
def _summed_log_probs(model: AudioLM, codes, lengths):
    """-> (sums [2], counts [2]) over all tokens, and over those that repeat nothing."""
    log_probs = audio_lm.token_log_probs(model, codes, jnp.maximum(lengths, 1))
    valid = jnp.arange(codes.shape[1]) < lengths[:, None]
    before = jnp.pad(codes, ((0, 0), (model.levels, 0)), constant_values=-1)[:, : codes.shape[1]]
    kinds = jnp.stack([valid, valid & (codes != before)])
    return jnp.sum(log_probs * kinds, (1, 2)), jnp.sum(kinds, (1, 2))


def training_stretches(
    streams: Streams, names: Sequence[str], size: int, protocol: TokenLMProtocol, seed: int
):
    """Endless batches: which clip and how far into it depends on the seed alone."""
    generator = np.random.default_rng(seed)
    while True:
        picks = generator.integers(0, len(names), protocol.batch)
        places = generator.random(protocol.batch)
        rows = []
        for pick, place in zip(picks, places, strict=True):
            clip = streams.clips[names[pick]]
            room = max(len(clip) - size, 0) // streams.levels
            start = int(place * (room + 1)) * streams.levels
            rows.append(clip[start : start + size])
        yield _stacked(rows, size)


def stretch_size(streams: Streams, protocol: TokenLMProtocol) -> int:
    """Tokens in a stretch, a whole number of frames."""
    return max(round(protocol.seconds * streams.frame_rate), 1) * streams.levels


def held_out(streams: Streams, protocol: TokenLMProtocol) -> tuple[Stretches, Stretches]:
    """Development and test stretches."""
    size = stretch_size(streams, protocol)
    return tuple(
        held_out_stretches(streams, names, size, protocol.held_out_stretches)
        for names in streams.split()[1:]
    )


def unseen_stretches(streams: Streams, protocol: TokenLMProtocol) -> Stretches:
    """Test stretches of the clips that stand apart."""
    size = stretch_size(streams, protocol)
    return held_out_stretches(streams, sorted(streams.unseen), size, protocol.held_out_stretches)


def held_out_stretches(streams: Streams, names: Sequence[str], size: int, limit: int) -> Stretches:
    """The clips cut end to end into stretches; of more than `limit`, those a hash chooses.

    The hash is of clip and number: the same places for every codec, whatever its token rate.
    """
    places = [
        (name, number) for name in names for number in range(-(-len(streams.clips[name]) // size))
    ]
    chosen = by_hash(places, limit, lambda place: f"{place[0]}:{place[1]}")
    rows = [streams.clips[name][n * size : (n + 1) * size] for name, n in chosen]
    return _stacked(rows, size)


def _stacked(rows: Sequence[np.ndarray], size: int) -> Stretches:
    codes = np.zeros((len(rows), size), np.int32)
    for target, row in zip(codes, rows, strict=True):
        target[: len(row)] = row
    return Stretches(codes, np.array([len(row) for row in rows], np.int32))


def _spread(values: list[float | None]) -> dict:
    """Of one number a seed; of one that is not defined, nulls."""
    known = [value for value in values if value is not None]
    deviation = statistics.stdev(known) if len(known) > 1 else None
    mean = statistics.fmean(known) if known else None
    return {"mean": mean, "deviation": deviation, "values": values}
