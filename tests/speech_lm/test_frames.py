"""Levels at one position: side by side or delayed, as they are learned and as they are written."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llmcodec_jax.codec.inference import Codec
from llmcodec_jax.errors import UsageError
from llmcodec_jax.lm import decoder, generate
from llmcodec_jax.lm.frames import level_heads
from llmcodec_jax.lm.sampling import GREEDY, Sampling
from llmcodec_jax.speech_lm import batches, data, method, speaker, template, writing
from llmcodec_jax.speech_lm.config import SpeechLM, default_config, read_config
from llmcodec_jax.speech_lm.template import Vocabulary
from llmcodec_jax.training.schedules import Schedule
from tests.codec.families import EXAMPLES
from tests.tiny import babble, tiny_lm_config

CONFIG = tiny_lm_config(1)
KINDS = ("sum", "delay")


def words(reads, size=24, levels=3):
    return Vocabulary(size, levels, CONFIG.vocab_size, reads)


def spelled(document, vocabulary):
    """A row a level; what is learned in capitals, what is nothing as a dot."""

    def one(i):
        if i == template.NOTHING:
            return "."
        if i < vocabulary.codes:
            return "abc"[i // vocabulary.size] + str(i % vocabulary.size)
        return template.MARKS[i - vocabulary.codes] if i < vocabulary.rows else "text"

    pairs = zip(document.ids.T, document.predicted.T, strict=True)
    return [
        " ".join(one(i).upper() if p else one(i) for i, p in zip(*level, strict=True))
        for level in pairs
    ]


def test_sequences_are_those_of_the_table():
    codes = np.array([0, 10, 1, 11], np.int32)  # a0 b0 a1 b1
    side, late = (words(kind, size=10, levels=2) for kind in KINDS)
    assert spelled(template.continuation(side, codes, ends=True), side) == [
        "<audio> A0 A1 <END>",
        ". B0 B1 <end>",
    ]
    assert spelled(template.continuation(late, codes, ends=True), late) == [
        "<audio> A0 A1 <END> .",
        ". . B0 B1 <end>",
    ]
    assert spelled(template.continuation(late, codes, ends=False), late) == [
        "<audio> A0 A1",
        ". . B0",
    ]
    said = template.tts(late, [5], codes[:2], voice=codes)
    assert spelled(said, late) == [
        "<text> text <voice> a0 a1 . <audio> A0 <END> .",
        ". . . . b0 b1 . . B0 <end>",
    ]


def writer_of(vocabulary, seed=0, ends=True):
    rows = jax.random.normal(jax.random.key(seed + 1), (3, vocabulary.rows, CONFIG.width))
    allowed = jnp.asarray(vocabulary.allowed()).at[0, vocabulary.mark("<end>")].set(ends)
    return generate.Writer(
        params=decoder.init_params(CONFIG, jax.random.key(seed)),
        embedding=rows[0],
        heads=0.3 * rows[1:2],
        allowed=allowed,
        lora=None,
        config=CONFIG,
    )


def written(vocabulary, writer, prompts, limit, how, seeds):
    """Ids of continuations of prompts (codes [T * Q]) through the public way of writing."""
    read = [template.continuation(vocabulary, p, ends=False).ids for p in prompts]
    ids = np.zeros((len(read), 12, vocabulary.levels), np.int32)
    for row, one in zip(ids, read, strict=True):
        row[: len(one)] = one
    way = writing.Frames(writer, vocabulary, limit)
    before = np.stack([writing.last_frames(p, vocabulary) for p in prompts])
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    progress = way.begin(ids, np.array([len(r) for r in read]), before, keys, how)
    while not progress.stopped.all():
        progress = way.extend(progress, how, 5, jnp.full(len(read), limit))
    return [way.read(progress, row) for row in range(len(read))]


def prompts_of(vocabulary, lengths, seed=0):
    rng = np.random.default_rng(seed)
    offsets = np.arange(vocabulary.levels) * vocabulary.size
    shape = (vocabulary.size, vocabulary.levels)
    return [
        (rng.integers(shape[0], size=(n, shape[1])) + offsets).reshape(-1).astype(np.int32)
        for n in lengths
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_what_the_training_pass_finds_likeliest(kind):
    """Prompt and continuation as one training sequence: each code is its level's argmax there."""
    vocabulary = words(kind)
    writer = writer_of(vocabulary, ends=False)
    (prompt,) = prompts_of(vocabulary, [6])
    (ids,) = written(vocabulary, writer, [prompt], 9, GREEDY, [0])
    assert len(ids) == 27
    document = template.continuation(vocabulary, np.concatenate([prompt, ids]), ends=False)
    embeds = method.embed(writer.params, writer.embedding, document.ids[None])
    hidden = decoder.forward(CONFIG, writer.params, embeds, remat=False).hidden[0]
    heads = level_heads(writer.heads[0], vocabulary.levels, vocabulary.size)[:, : vocabulary.size]
    likeliest = np.asarray(jnp.einsum("th,qvh->tqv", hidden, heads).argmax(-1))
    likeliest = likeliest + np.arange(vocabulary.levels) * vocabulary.size
    frames = ids.reshape(-1, vocabulary.levels)
    checked = 0
    for level, delay in enumerate(vocabulary.delays):
        for number in range(len(frames) - delay):
            assert likeliest[6 + number + delay, level] == frames[number, level]
            checked += 1
    assert checked >= 24


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_whole_and_do_not_depend_on_company(kind):
    vocabulary = words(kind)
    writer = writer_of(vocabulary)
    prompts = prompts_of(vocabulary, [1, 5, 7])
    both = written(vocabulary, writer, prompts, 12, Sampling(), [1, 2, 3])
    alone = written(vocabulary, writer, prompts[1:2], 12, Sampling(), [2])
    np.testing.assert_array_equal(both[1], alone[0])
    end, offsets = vocabulary.mark("<end>"), np.arange(3) * vocabulary.size
    for ids in both:
        codes = ids[ids != end].reshape(-1, 3) - offsets
        assert ((codes >= 0) & (codes < vocabulary.size)).all()
        assert len(codes) == 12 or ids[-1] == end


def test_an_lm_ends_after_the_frames_that_it_began():
    vocabulary = words("delay")
    writer = writer_of(vocabulary)
    found = [
        written(vocabulary, writer, prompts_of(vocabulary, [4]), 30, Sampling(), [seed])[0]
        for seed in range(8)
    ]
    ended = [ids for ids in found if ids[-1] == vocabulary.mark("<end>")]
    assert len(ended) > 2
    assert {len(ids) % 3 for ids in ended} == {1}


def learned_nats(reads, steps=120):
    """Training on two levels of which the second repeats the first -> nats a code."""
    vocabulary = Vocabulary(8, 2, CONFIG.vocab_size, reads)
    how = method.SpeechMethod(
        lm=SpeechLM(horizons=1, reads=reads, config=CONFIG),
        vocabulary=vocabulary,
        schedule=Schedule(steps),
        groups=(),
        writes_text=False,
    )
    rng = np.random.default_rng(0)

    def batch():
        first = rng.integers(8, size=(16, 24))
        codes = np.stack([first, first + 8], axis=-1).reshape(16, -1).astype(np.int32)
        made = [template.continuation(vocabulary, one, ends=True) for one in codes]
        return batches.pack(iter(made), 16, 27 if vocabulary.stacked else 50)[0]

    params = method.init_params(how, None, jax.random.key(0))
    transform = optax.adam(1e-2)
    state = transform.init(params)

    def loss(params, batch):
        total, count = method.losses(how, params, None, batch)["token/1"]
        return total / count

    @jax.jit
    def step(params, state, batch):
        found, gradients = jax.value_and_grad(loss)(params, batch)
        updates, state = transform.update(gradients, state)
        return optax.apply_updates(params, updates), state, found

    for _ in range(steps):
        params, state, found = step(params, state, batch())
    return float(found), params, vocabulary


def test_a_delayed_level_knows_the_ones_before_it_and_a_parallel_one_does_not():
    """log 8 = 2.08 nats for the first level; the second costs nothing where the first is known."""
    late, params, vocabulary = learned_nats("delay")
    assert late == pytest.approx(np.log(8) / 2, abs=0.15)
    assert learned_nats("sum")[0] == pytest.approx(np.log(8), abs=0.15)
    writer = writer_of(vocabulary).replace(
        params=params["body"], embedding=params["embedding"], heads=params["heads"]
    )
    prompt = np.array([3, 11, 5, 13], np.int32)
    (ids,) = written(vocabulary, writer, [prompt], 10, Sampling(), [0])
    codes = ids[ids != vocabulary.mark("<end>")].reshape(-1, 2)
    assert (codes[:, 1] == codes[:, 0] + 8).mean() > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_a_residual_codec_speaks_and_streams(kind):
    module = EXAMPLES["encodec"]
    wav = jnp.zeros((1, 8 * module.hop))
    init = jax.jit(lambda key: module.init(key, wav, method="reconstruct"))
    codec = Codec(module, init(jax.random.key(0)), buckets=(64, 256))
    vocabulary = words(kind)
    lm = speaker.SpeechLM(
        writer_of(vocabulary, ends=False), vocabulary, "continuation", data.bytes_of, codec
    )
    second = codec.sample_rate / codec.hop
    request = speaker.Request(start=babble(20 / second, 1, codec.sample_rate), seed=3)
    (written,) = lm.write([request], Sampling(), 10 / second)
    assert written.passes == 10 + vocabulary.delays[-1]
    spoken = lm.finish(request, written)
    assert spoken.codes.shape == (10, 3)
    pieces = list(lm.stream(request, Sampling(), max_seconds=10 / second, frames=2))
    assert len(pieces) > 3
    whole = codec.decode(spoken.codes)
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-4)


def test_what_stacked_levels_cannot_do_is_refused():
    config = default_config()
    config.lm.reads = "delay"
    with pytest.raises(UsageError, match=r"lm\.horizons=1"):
        read_config(config)
    config.lm.horizons, config.task = 1, "chat"
    with pytest.raises(UsageError, match="flat"):
        read_config(config)
    config.task, config.lm.reads = "tts", "first"
    with pytest.raises(UsageError, match=r"flat, sum, delay"):
        read_config(config)
