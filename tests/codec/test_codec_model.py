"""The codec module: padding, statistics, search, residual levels, revival."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax.codec import quantizer
from llmcodec_jax.codec.auv import conformer
from llmcodec_jax.codec.auv.model import AUV, nested_partitions
from llmcodec_jax.types import DOMAINS
from tests.tiny import SMALL, init


def noise(batch, frames, seed=0, hop=320):
    return 0.1 * np.random.default_rng(seed).standard_normal((batch, frames * hop)).astype("f4")


@functools.cache
def compiled(codec, method, **options):
    return jax.jit(lambda v, *a: codec.apply(v, *a, method=method, **options))


def run(codec, variables, *args, method, **options):
    return compiled(codec, method, **options)(variables, *args)


def test_codes_do_not_depend_on_padding_or_companions(small):
    codec, variables = small
    wav = noise(3, 20)
    length = np.array([20 * 320, 2500, 320 * 7 + 1], np.int32)
    garbage = wav.copy()  # what lies past a clip's end must not matter, nor its amplitude
    output, batch = run(codec, variables, garbage, length, method="reconstruct")
    for row, samples in enumerate(length):
        frames = -(-int(samples) // 320)
        alone = np.zeros((1, frames * 320), np.float32)
        alone[0, :samples] = wav[row, :samples]
        single, wav_alone = run(codec, variables, alone, None, method="reconstruct")
        np.testing.assert_array_equal(output.codes[row, :frames], single.codes[0])
        np.testing.assert_allclose(output.latent[row, :frames], single.latent[0], atol=1e-4)
        np.testing.assert_allclose(output.vq_loss[row], single.vq_loss[0], atol=1e-5)
        np.testing.assert_allclose(batch[row, : frames * 320], wav_alone[0], atol=1e-5)
        assert not output.frame_mask[row, frames:].any()
        assert not output.codes[row, frames:].any()
        assert not batch[row, frames * 320 :].any()


@pytest.mark.parametrize("samples", [0, 1, 2, 319, 320, 321])
def test_shortest_clips_stay_finite(small, samples):
    codec, variables = small
    output, wav = run(
        codec, variables, noise(1, 2), np.array([samples], np.int32), method="reconstruct"
    )
    for value in (output.latent, output.vq_loss, wav):
        assert np.isfinite(value).all()
    assert output.frame_mask.sum() == -(-samples // 320)


def test_silence_has_one_code(small):
    codec, variables = small
    output = run(codec, variables, np.zeros((1, 6400), np.float32), method="encode")
    assert np.isfinite(output.latent).all()
    stays = run(codec, variables, -np.zeros((1, 6400), np.float32), method="encode")
    np.testing.assert_array_equal(output.codes, stays.codes)


def test_length_must_be_whole_frames(small):
    with pytest.raises(ValueError, match="multiple of hop 320"):
        small[0].apply(small[1], jnp.zeros((1, 500)), method="encode")


def test_depthwise_is_a_grouped_convolution_with_its_gradients():
    rng = np.random.default_rng(0)
    x, kernel, g = (
        jnp.asarray(rng.standard_normal(s), "f4") for s in [(2, 9, 4), (5, 4), (2, 9, 4)]
    )

    def reference(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel[:, None],
            (1,),
            "SAME",
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=4,
        )

    out, pull = jax.vjp(conformer.depthwise, x, kernel)
    expected, expected_pull = jax.vjp(reference, x, kernel)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for ours, theirs in zip(pull(g), expected_pull(g), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_batch_norm_counts_valid_frames_only_and_only_in_training():
    norm = conformer.BatchNorm()
    x = np.random.default_rng(0).standard_normal((2, 6, 3)).astype("f4") * 2 + 1
    mask = np.arange(6) < np.array([[6], [2]])
    variables = norm.init(jax.random.key(0), x, mask, False)
    valid = x[mask]
    out, changed = norm.apply(variables, x, mask, True, mutable=["batch_stats"])
    np.testing.assert_allclose(np.asarray(out)[mask].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(np.asarray(out)[mask].std(0), 1, atol=1e-4)
    stats = changed["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * valid.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * valid.var(0, ddof=1), rtol=1e-5)
    assert stats["steps"] == 1
    _, kept = norm.apply(variables, x, mask, False, mutable=["batch_stats"])
    assert jax.tree.all(
        jax.tree.map(np.array_equal, dict(kept), {"batch_stats": variables["batch_stats"]})
    )


def test_fine_tuning_leaves_statistics_alone_and_training_moves_them(small):
    codec, variables = small
    wav, length = noise(2, 8), np.array([2560, 700], np.int32)
    changed = {}
    for train in (False, True):
        _, state = run(
            codec,
            variables,
            wav,
            length,
            method="reconstruct",
            train=train,
            mutable="batch_stats",
        )
        before, after = variables["batch_stats"], state["batch_stats"]
        same = jax.tree.map(lambda a, b: np.array_equal(a, b), before, dict(after))
        changed[train] = {path for path, keep in jax.tree.leaves_with_path(same) if not keep}
    assert not changed[False]
    assert len(changed[True]) == len(jax.tree.leaves(variables["batch_stats"]))


def test_rematerialisation_and_search_chunk_change_nothing(small):
    codec, variables = small
    wav = noise(1, 8)

    def loss(codec):
        def value(params):
            output = codec.apply({**variables, "params": params}, wav, method="encode")
            return output.vq_loss.mean() + jnp.mean(jnp.square(output.quantised))

        return jax.jit(jax.grad(value))(variables["params"])

    plain, other = loss(codec), loss(codec.clone(remat=True, search_chunk=40))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, other)


def test_bfloat16_computes_close_and_keeps_float32_outputs(small):
    codec, variables = small
    exact, _ = run(codec, variables, noise(1, 8), method="reconstruct")
    rough, wav = run(codec.clone(dtype="bfloat16"), variables, noise(1, 8), method="reconstruct")
    assert rough.latent.dtype == rough.query.dtype == wav.dtype == jnp.float32
    error = np.abs(np.asarray(exact.latent) - np.asarray(rough.latent)).mean()
    assert 0 < error < 0.05


@pytest.mark.parametrize("chunk", [7, 32, 100, 1000])
def test_chunked_search_is_the_full_search(chunk):
    rng = np.random.default_rng(0)
    query = quantizer.normalise(jnp.asarray(rng.standard_normal((3, 11, 4)), "f4"))
    table = quantizer.normalise(jnp.asarray(rng.standard_normal((100, 4)), "f4"))
    table = table.at[60].set(table[5])  # a tie goes to the lower code
    similarity = np.einsum("btd,vd->btv", query, table)
    found = quantizer.nearest(query, table, chunk=chunk)
    np.testing.assert_array_equal(found, similarity.argmax(-1))
    bounds = np.array([[0, 10], [90, 100], [37, 38]])
    for row, (low, high) in enumerate(bounds):
        limited = quantizer.nearest(query, table, jnp.asarray(bounds), chunk)[row]
        np.testing.assert_array_equal(limited, low + similarity[row, :, low:high].argmax(-1))


def test_domains_limit_the_search(small):
    codec, variables = small
    wav = noise(len(DOMAINS), 10)
    codes = run(codec, variables, wav, None, np.arange(len(DOMAINS)), method="encode").codes
    for row, (low, high) in enumerate(nested_partitions(codec.codebook_size)):
        assert (codes[row] >= low).all()
        assert (codes[row] < high).all()
    assert nested_partitions(20480)[0] == (0, 8192)
    assert nested_partitions(20480)[4] == (12288, 20480)
    open_codec = codec.clone(partitions=None)
    free = run(open_codec, variables, wav, None, np.arange(len(DOMAINS)), method="encode").codes
    np.testing.assert_array_equal(free, run(codec, variables, wav, method="encode").codes)


def test_residual_levels_quantise_what_is_left():
    codec = AUV(**SMALL, levels=3)
    variables = init(codec)
    output = run(codec, variables, noise(2, 6), method="encode")
    assert output.codes.shape == (2, 6, 3)
    looked_up = run(codec, variables, output.codes, method="lookup")
    np.testing.assert_allclose(looked_up, output.quantised, atol=1e-4)
    searched = run(codec, variables, output.latent, output.codes, method="search_inputs")
    np.testing.assert_allclose(quantizer.normalise(searched), output.query, atol=1e-5)
    wav = run(codec, variables, output.codes, method="decode_codes")
    assert wav.shape == (2, 6 * 320)


def test_search_table_is_the_search(small):
    codec, variables = small
    output = run(codec, variables, noise(1, 20), method="encode")
    table = run(codec, {"params": variables["params"]}, method="search").table
    np.testing.assert_array_equal((output.query[:, :, 0] @ table.T).argmax(-1), output.codes)


def test_straight_through_gradient_reaches_the_encoder(small):
    codec, variables = small

    def loss(params):
        return jnp.sum(
            codec.apply({**variables, "params": params}, noise(1, 6), method="encode").quantised
        )

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    assert np.abs(gradient["encoder"]["stft_head"]["projection"]["kernel"]).max() > 0
    assert not np.abs(gradient["quantizer"]["level_0"]["codebook"]).any()


def test_revival_moves_dead_codes_only_to_encoder_outputs():
    rng = np.random.default_rng(0)
    codebook, candidates = rng.standard_normal((50, 4)), 100 + rng.standard_normal((2, 8, 4))
    mask = np.arange(8) < np.array([[8], [3]])
    candidates[~mask] = -1e6  # padding is never drawn
    usage = np.full(50, 1 / 50)
    usage[[3, 17]] = 1e-5
    args = [jnp.asarray(x, "f4") for x in (codebook, usage, candidates)]
    revived, new_usage = quantizer.revive_dead_codes(*args, jnp.asarray(mask), jax.random.key(0))
    moved = np.flatnonzero((np.asarray(revived) != args[0]).any(-1))
    assert moved.tolist() == [3, 17]
    distance = np.linalg.norm(candidates[mask][None] - np.asarray(revived)[moved][:, None], axis=-1)
    assert distance.min(axis=1).max() < 20
    assert np.linalg.norm(revived[3] - revived[17]) > 0
    np.testing.assert_allclose(new_usage[moved], 1 / 50)
    kept, _ = quantizer.revive_dead_codes(*args, jnp.zeros_like(mask), jax.random.key(0))
    np.testing.assert_array_equal(kept, args[0])


def test_data_driven_start_spreads_the_codes(small):
    """threshold=inf re-draws the whole codebook from the encoder: many more codes in use."""
    codec, variables = small
    wav = noise(4, 40)
    output = run(codec, variables, wav, method="encode")
    started = jax.jit(lambda v, o: codec.revive(v, o, jax.random.key(1), jnp.inf))(
        variables, output
    )
    again = run(codec, started, wav, method="encode")
    assert len(np.unique(again.codes)) > 1.5 * len(np.unique(output.codes))
    assert again.vq_loss.mean() < 0.5 * output.vq_loss.mean()


def test_usage_follows_the_codes_of_valid_frames():
    codes, mask = np.array([[1, 1, 2], [0, 3, 3]]), np.array([[1, 1, 1], [1, 0, 0]], bool)
    counts = quantizer.code_counts(jnp.asarray(codes), jnp.asarray(mask), 5)
    assert counts.tolist() == [1, 2, 1, 0, 0]
