"""What the system relies on in every codec, whatever its architecture (types.Codec)."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from llmcodec_jax import audio, decode, encode, evaluate, export_tokens
from llmcodec_jax.bridge import LOGIT_LIMIT
from llmcodec_jax.codec import registry, store, tokens
from llmcodec_jax.codec.inference import Codec
from llmcodec_jax.codec.search import search_logits
from llmcodec_jax.codec.tokens import Tokens
from llmcodec_jax.evaluation.streams import from_token_files as read_streams
from llmcodec_jax.types import CodecOutput
from tests.codec.families import EXAMPLES, QUICK
from tests.codec.toy_codec import TOY
from tests.tiny import babble

FRAMES = 24
PADDING_SHARE = 0.25
"""Codes that padding may change at most where a family declares `exact_padding = False`."""


@pytest.fixture(scope="module", autouse=True)
def with_toy():
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(registry.FAMILIES, "toy", TOY)
        yield


class Case:
    """A module with weights that use its codebook, and compiled methods."""

    def __init__(self, name):
        self.name, self.codec = name, EXAMPLES[name]
        self.compiled = {}
        wav = jnp.zeros((1, 8 * self.codec.hop))
        init = jax.jit(lambda key: self.codec.init(key, wav, method="reconstruct"))
        # This generator compiles four times as fast; every parameter of a family is a draw.
        self.variables = init(jax.random.key(3, impl="rbg"))
        self.lengths = np.array([FRAMES, FRAMES - 7, 1, FRAMES - 3]) * self.codec.hop
        self.lengths[1] -= 5  # not a whole number of frames
        seconds = self.samples / self.codec.sample_rate
        self.wav = np.stack([babble(seconds, s, self.codec.sample_rate) for s in range(4)])
        self.wav = self.wav[:, : self.samples]
        if self.name == "unicodec":  # fresh gains leave too little sound to leave one fixed code
            louder = lambda path, x: x * 2.5 if path[-1].key == "scale" else x  # noqa: E731
            encoder = self.variables["params"]["encoder"]["seanet"]
            self.variables["params"]["encoder"]["seanet"] = jax.tree_util.tree_map_with_path(
                louder, encoder
            )
        if hasattr(self.codec, "revive"):  # a start from data, as training from scratch makes
            start = jax.jit(lambda v, o: self.codec.revive(v, o, jax.random.key(4), jnp.inf))
            self.variables = start(self.variables, self.run("encode", self.wav, self.lengths))

    @property
    def samples(self):
        return FRAMES * self.codec.hop

    def run(self, method, *args):
        if method not in self.compiled:
            self.compiled[method] = jax.jit(lambda v, *a: self.codec.apply(v, *a, method=method))
        return self.compiled[method](self.variables, *args)

    @functools.cached_property
    def output(self) -> CodecOutput:
        return self.run("encode", self.wav, self.lengths)


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in EXAMPLES],
)
def case(request):
    return Case(request.param)


def test_every_family_has_an_example():
    assert {name.split("_")[0] for name in EXAMPLES} == set(registry.FAMILIES)


def test_shapes_and_types(case):
    codec, output = case.codec, case.output
    levels = () if codec.levels == 1 else (codec.levels,)
    assert output.codes.shape == (4, FRAMES, *levels)
    assert output.codes.dtype == jnp.int32
    assert output.latent.shape == output.quantised.shape == (4, FRAMES, codec.width)
    assert output.query.shape[:3] == (4, FRAMES, codec.levels)
    assert output.vq_loss.shape == (4,)
    assert output.query.dtype == output.vq_loss.dtype == jnp.float32
    frames = -(-case.lengths // codec.hop)
    np.testing.assert_array_equal(output.frame_mask, np.arange(FRAMES) < frames[:, None])
    assert not np.any(np.asarray(output.codes)[~np.asarray(output.frame_mask)])
    assert 0 <= output.codes.min() <= output.codes.max() < codec.codebook_size
    assert len(np.unique(output.codes)) > 3
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(output))


def test_codes_depend_on_neither_padding_nor_company(case):
    """Where a family cannot be exact it says so, and the share of changed codes is printed."""
    changed = total = 0
    for row, length in enumerate(case.lengths):
        whole = -(-length // case.codec.hop) * case.codec.hop
        alone = np.zeros((1, whole), np.float32)
        alone[0, :length] = case.wav[row, :length]
        codes = np.asarray(case.run("encode", alone, None).codes)[0]
        together = np.asarray(case.output.codes)[row, : len(codes)]
        changed, total = changed + (codes != together).sum(), total + codes.size
    if getattr(case.codec, "exact_padding", True):
        assert changed == 0
    else:
        print(f"{case.name}: padding changes {changed} of {total} codes")
        assert changed <= PADDING_SHARE * total


def test_decoding_has_the_length_of_the_frames_and_is_silent_past_the_end(case):
    wav = case.run("decode", case.output.quantised, case.output.frame_mask)
    assert wav.shape == (4, case.samples)
    assert wav.dtype == jnp.float32
    frames = -(-case.lengths // case.codec.hop)
    past = np.arange(case.samples) >= (frames * case.codec.hop)[:, None]
    assert not np.any(np.asarray(wav)[past])
    assert np.abs(wav[0]).max() > 0
    output, again = case.run("reconstruct", case.wav, case.lengths)
    assert_same_choices(case, case.output, output)
    same_codes = case.run("decode", output.quantised, output.frame_mask)
    np.testing.assert_allclose(again, same_codes, atol=1e-5)


def assert_same_choices(case, one: CodecOutput, other: CodecOutput):
    """Codes of two programs are equal but where two codes fit a frame alike within rounding."""
    shape = (4, FRAMES, case.codec.levels)
    codes, others = (np.asarray(output.codes).reshape(shape) for output in (one, other))
    differing = codes != others
    first = differing & (np.cumsum(differing, axis=-1) == 1)  # what follows it must differ
    for clip, frame, level in np.argwhere(first):
        search = case.codec.apply(case.variables, level, method="search")
        query, table = np.asarray(one.query)[clip, frame, level], np.asarray(search.table)
        score = -np.sum(np.square(table - query), axis=-1)
        if search.metric == "cosine":
            score = table @ query
        best, second = score[codes[clip, frame, level]], score[others[clip, frame, level]]
        assert best - second <= 1e-5 * np.ptp(score), (clip, frame, level)


def test_codes_alone_carry_the_sound(case):
    mask = case.output.frame_mask
    looked_up = case.run("lookup", case.output.codes)
    np.testing.assert_allclose(
        np.asarray(looked_up)[mask], np.asarray(case.output.quantised)[mask], atol=1e-4
    )
    from_codes = case.run("decode_codes", case.output.codes, mask)
    decoded = case.run("decode", looked_up, mask)
    np.testing.assert_allclose(from_codes, decoded, atol=1e-5)


def test_fewer_levels_are_the_first_levels(case):
    if case.codec.levels == 1:
        pytest.skip("one level")
    fewer = jax.jit(lambda v, w: case.codec.apply(v, w, levels=1, method="encode"))
    output = fewer(case.variables, case.wav)
    whole = case.run("encode", case.wav, None)
    assert output.codes.shape == (4, FRAMES, 1)
    np.testing.assert_array_equal(output.codes[..., 0], whole.codes[..., 0])
    looked_up = case.run("lookup", output.codes)
    np.testing.assert_allclose(looked_up, output.quantised, atol=1e-4)


def test_search_is_the_quantisers_and_the_bridge_agrees_with_it(case):
    mask = np.asarray(case.output.frame_mask)
    for q in range(case.codec.levels):
        one = case.output.level(q)
        search = case.codec.apply(case.variables, q, method="search")
        assert search.table.shape[0] == case.codec.codebook_size
        assert search.table.dtype == jnp.float32
        query, weight, bias = search_logits(search, one.query[:, :, 0], one.codes, 0.01)
        logits = np.einsum("btd,vd->btv", query, weight) + np.asarray(bias)
        np.testing.assert_array_equal(logits.argmax(-1)[mask], np.asarray(one.codes)[mask])
        best = logits.max(-1)[mask]
        if search.metric != "cosine":  # far from the bridge's clip whatever the codebook's unit
            assert np.abs(best).max() < 0.01 * LOGIT_LIMIT


def test_gradient_reaches_every_part(case):
    def loss(params):
        variables = {**case.variables, "params": params}
        output, wav = case.codec.apply(variables, case.wav, case.lengths, method="reconstruct")
        return jnp.mean(jnp.square(wav - case.wav)) + jnp.mean(output.vq_loss)

    gradient = jax.jit(jax.grad(loss))(case.variables["params"])
    parts = {"encoder", "quantizer", "decoder"}
    if getattr(case.codec, "learning", "gradient") == "ema":  # codebooks are running means
        parts.remove("quantizer")
    assert parts <= set(gradient)
    for part in sorted(parts):
        leaves = jax.tree.leaves(gradient[part])
        assert all(np.isfinite(leaf).all() for leaf in leaves)
        assert max(float(jnp.abs(leaf).max()) for leaf in leaves) > 0, part


def same(one, two):
    one, two = (flatten_dict(jax.device_get(dict(tree))) for tree in (one, two))
    assert set(one) == set(two)
    for path, value in one.items():
        assert np.asarray(value).tobytes() == np.asarray(two[path]).tobytes(), path


def test_saved_and_loaded_is_the_same_to_the_bit(case, tmp_path):
    store.save_codec_folder(tmp_path / "folder", case.codec, case.variables)
    codec, variables = store.load(tmp_path / "folder")
    assert codec == case.codec
    same(variables, case.variables)
    assert store.digest(codec, variables) == store.digest(case.codec, case.variables)


def test_exported_and_imported_is_the_same_to_the_bit(case, tmp_path):
    store.save_safetensors(tmp_path / "x.safetensors", case.codec, case.variables)
    codec, variables = store.load(tmp_path / "x.safetensors")
    assert codec == case.codec
    same(variables, case.variables)


def test_in_use_any_length_round_trips(case):
    codec = Codec(case.codec, jax.device_get(case.variables), buckets=(16, 48))
    rate = case.codec.sample_rate
    for seconds in (0.01, 60 * codec.hop / rate):
        wav = babble(seconds, 5, rate)
        codes = codec.encode(wav)
        assert len(codes) == -(-len(wav) // codec.hop)
        assert codec.decode(codes).shape == (len(codes) * codec.hop,)


def test_folders_go_through_the_commands(case, tmp_path):
    """Audio of another rate to tokens, to audio, to a table and to a token LM's report."""
    rate = 22_050
    for index, seconds in enumerate((0.3, 0.5, 0.7, 1.1)):
        audio.write(tmp_path / f"in/{index}.wav", babble(seconds, index, rate), rate)
    store.save_codec_folder(tmp_path / "codec", case.codec, case.variables)
    codec = ["--codec", str(tmp_path / "codec")]

    def folders(source, target):
        return ["--input", str(tmp_path / source), "--output", str(tmp_path / target)]

    assert encode.main([*codec, *folders("in", "tokens")]) == 0
    assert decode.main([*codec, *folders("tokens", "out")]) == 0
    made = tokens.read(tmp_path / "tokens/3.npz")
    assert (made.architecture, made.levels) == (
        registry.family_of(case.codec).name,
        case.codec.levels,
    )
    assert made.codec == store.digest(case.codec, case.variables)
    wav, own = audio.read(tmp_path / "out/3.wav")
    assert (len(wav), own) == (made.num_samples, case.codec.sample_rate)
    assert abs(made.num_samples - 1.1 * own) <= 1
    assert export_tokens.main(folders("tokens", "table.jsonl")) == 0
    rows = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()]
    assert {row["codebook_size"] for row in rows} == {case.codec.codebook_size}
    top = max(max(row["codes"]) for row in rows)
    assert top < case.codec.codebook_size * case.codec.levels
    streams = read_streams(tmp_path / "tokens")
    assert (streams.codebook_size, streams.levels) == (case.codec.codebook_size, case.codec.levels)
    assert streams.frame_rate == pytest.approx(case.codec.sample_rate / case.codec.hop)


def test_a_token_lm_runs_on_residual_codes(tmp_path):
    """The report of `evaluate token_lm` on a folder of the toy's tokens."""
    rng = np.random.default_rng(0)
    for index in range(4):
        made = Tokens(rng.integers(0, 24, (30, 3)), 24_000, 30 * 480, 24, 480, "toy", "a")
        tokens.write(tmp_path / f"tokens/{index}.npz", made)
    small = "--steps 2 --batch 2 --width 64 --layers 1 --seeds 1 --evaluations 2 --seconds 0.2"
    report = tmp_path / "report.json"
    options = ["--codec", str(tmp_path / "tokens"), "--output", str(report), *small.split()]
    assert evaluate.main(["token_lm", *options]) == 0
    stream = json.loads(report.read_text())["stream"]
    assert (stream["codebook_size"], stream["levels"]) == (24, 3)
    assert stream["tokens_per_second"] == 150
