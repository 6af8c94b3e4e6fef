"""The convolutional layers: their definition, padded batches equal to single clips, streams."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from llmcodec_jax.codec.conv.layers import (
    Conv1d,
    ConvTranspose1d,
    elu,
    pad_time,
    sine_squared,
)
from llmcodec_jax.codec.conv.lstm import LSTM
from llmcodec_jax.codec.conv.residual_vq import (
    ResidualEuclidean,
    SplitResidual,
    nearest_euclidean,
    search_columns,
)
from llmcodec_jax.codec.conv.seanet import SEANetConfig, SEANetDecoder, SEANetEncoder
from llmcodec_jax.codec.quantizer import draw_levels, normalise
from llmcodec_jax.ops import backend, fast_fir


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@functools.cache
def compiled(module, **options):
    return jax.jit(functools.partial(module.apply, **options))


def run(module, variables, *arrays, **options):
    """module.apply, compiled as one: op by op it would compile hundreds of small programs."""
    return compiled(module, **options)(variables, *arrays)


def initial(module, *arrays, seed=0):
    """Parameters from numpy: compiling the draws of a whole network takes longer than its use."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *arrays)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key == "cluster_size":
            return np.ones(leaf.shape, np.float32)
        return (rng.standard_normal(leaf.shape) / max(leaf.shape[0], 4) ** 0.5).astype(np.float32)

    return jax.tree.map_with_path(draw, shapes)


def same(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def padded_reference(clip, left, right, mode):
    """numpy's padding of one clip [T, C], with the published rule for short ones."""
    if mode == "zero":
        return np.pad(clip, ((left, right), (0, 0)))
    if mode == "replicate":
        return np.pad(clip, ((left, right), (0, 0)), mode="edge")
    extra = max(max(left, right) - len(clip) + 1, 0)
    long = np.pad(clip, ((0, extra), (0, 0)))
    return np.pad(long, ((left, right), (0, 0)), mode="reflect")[: left + len(clip) + right]


@pytest.mark.parametrize("mode", ["zero", "reflect", "replicate"])
@pytest.mark.parametrize(("left", "right"), [(6, 0), (3, 2), (4, 4)])
def test_padding_is_each_clips_own(mode, left, right):
    x, length = noise(4, 12, 3), jnp.array([12, 7, 3, 1])
    padded = pad_time(x, length, left, right, mode)
    for clip, size, got in zip(x, length, padded, strict=True):
        size = int(size)
        np.testing.assert_array_equal(
            got[: left + size + right], padded_reference(clip[:size], left, right, mode)
        )
    np.testing.assert_array_equal(
        pad_time(x[:, :5], None, left, right, mode)[2],
        padded_reference(x[2, :5], left, right, mode),
    )


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "dilation", "groups"), [(7, 1, 3, 1), (10, 5, 1, 2)])
def test_convolution_is_its_definition(causal, kernel, stride, dilation, groups):
    layer = Conv1d(4, 6, kernel, stride, groups, causal, dilation=dilation, norm="weight")
    x = noise(2, 40, 4)
    variables = initial(layer, x)
    variables["params"]["scale"] = variables["params"]["scale"] * 1.5
    y, _ = run(layer, variables, x)
    direction = np.asarray(variables["params"]["direction"])
    weights = direction / np.sqrt((direction**2).sum((0, 1))) * variables["params"]["scale"]
    total = (kernel - 1) * dilation + 1 - stride
    left = total if causal else total - total // 2
    padded = np.pad(x, ((0, 0), (left, total - left), (0, 0)))
    expected = np.zeros((2, 40 // stride, 6), np.float32)
    for t, k, out in itertools.product(range(40 // stride), range(kernel), range(6)):
        part = slice(out // (6 // groups) * (4 // groups), (out // (6 // groups) + 1) * 4 // groups)
        expected[:, t, out] += padded[:, t * stride + k * dilation, part] @ weights[k, :, out]
    same(y, expected + variables["params"]["bias"])


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("trim", [(0, 5), (3, 2), (3, 3), (0, 0)])
def test_transposed_convolution_is_its_definition(groups, trim):
    stride, frames = 5, 2
    layer = ConvTranspose1d(8, 8, frames * stride, stride, groups, trim=trim)
    x = noise(2, 6, 8)
    variables = initial(layer, x)
    y, _ = run(layer, variables, x)
    kernel = np.asarray(variables["params"]["kernel"])  # [frames, in / g, (g, stride, out / g)]
    kernel = kernel.reshape(frames, 8 // groups, groups, stride, 8 // groups)[::-1]
    expected = np.zeros((2, 5 * stride + frames * stride, 8), np.float32)
    for t, back, g in itertools.product(range(6), range(frames), range(groups)):
        part = slice(g * 8 // groups, (g + 1) * 8 // groups)
        sound = np.einsum("bi,isf->bsf", x[:, t, part], kernel[back, :, g])
        expected[:, (t + back) * stride : (t + back + 1) * stride, part] += sound
    expected = expected[:, trim[0] : expected.shape[1] - trim[1]]
    same(y, expected + variables["params"]["bias"])


NETS = {
    "causal reflect": SEANetConfig(filters=4, width=6, strides=(2, 5), residual_layers=2),
    "causal zero": SEANetConfig(
        filters=4, width=6, strides=(2, 3), pad_mode="zero", norm="none", lstm_layers=0,
        shortcut=False, last_kernel=3,
    ),
    "reflect, group norm": SEANetConfig(
        channels=2, filters=4, width=6, strides=(2, 5), causal=False, norm="group"
    ),
    "both ways, snake": SEANetConfig(
        filters=4, width=6, strides=(2, 4), causal=False, bidirectional=True, activation="snake"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_padded_batch_equals_single_clips(name):
    config = NETS[name]
    hop, frames = int(np.prod(config.strides)), np.array([9, 7, 1])
    wav = noise(3, 9 * hop, config.channels)
    encoder, decoder = SEANetEncoder(config), SEANetDecoder(config)
    here = initial(encoder, wav)
    latent, length = run(encoder, here, wav, jnp.asarray(frames * hop))
    np.testing.assert_array_equal(length, frames)
    there = initial(decoder, latent, seed=1)
    sound, samples = run(decoder, there, latent, length)
    np.testing.assert_array_equal(samples, frames * hop)
    assert sound.shape == wav.shape
    for index, count in enumerate(frames):
        alone, _ = run(encoder, here, wav[index : index + 1, : count * hop])
        same(latent[index, :count], alone[0])
        alone, _ = run(decoder, there, latent[index : index + 1, :count])
        same(sound[index, : count * hop], alone[0])


@pytest.mark.parametrize("name", ["causal reflect", "causal zero"])
def test_stream_equals_whole_clip(name):
    config = NETS[name]
    hop = int(np.prod(config.strides))
    wav = noise(2, 12 * hop)[..., None]
    encoder, decoder = SEANetEncoder(config), SEANetDecoder(config)
    here = initial(encoder, wav)
    assert set(here) == {"params"}
    latent, _ = run(encoder, here, wav)
    there = initial(decoder, latent, seed=1)
    sound, _ = run(decoder, there, latent)

    def stream(module, variables, x, step, first):
        state, pieces, at = {}, [], 0
        while at < x.shape[1]:
            size = first if at == 0 else step
            (piece, _), state = run(
                module, {**variables, **state}, x[:, at : at + size], mutable=("stream",)
            )
            pieces.append(piece)
            at += size
        return jnp.concatenate(pieces, axis=1)

    # A reflected start looks seven frames ahead; zeros look nowhere.
    first = 7 if config.pad_mode == "reflect" else 1
    same(stream(encoder, here, wav, hop, first * hop), latent)
    same(stream(decoder, there, latent, 1, first), sound)


@pytest.mark.parametrize(
    ("taps", "dilation", "steps"), [(7, 1, 50), (7, 3, 61), (4, 2, 33), (2, 1, 8)]
)
def test_fewer_products_are_the_same_convolution(taps, dilation, steps):
    x = noise(2, steps + (taps - 1) * dilation, 5)
    kernel = noise(taps, 5, 4, seed=1)

    def total(convolution, x, kernel):
        y = convolution(x, kernel, dilation)
        return jnp.sum(jnp.sin(y)), y

    def both(convolution):
        of = functools.partial(total, convolution)
        (_, y), gradients = jax.value_and_grad(of, argnums=(0, 1), has_aux=True)(x, kernel)
        return y, gradients

    ours, plain = both(fast_fir.split), both(fast_fir.plain)
    assert ours[0].shape == (2, steps, 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, plain)


def test_a_wide_kernel_is_split_again():
    x, kernel = noise(1, 1200, 320), noise(7, 320, 8, seed=1) / np.float32(47)
    made = jax.make_jaxpr(fast_fir.convolve)(x, kernel)
    count = str(made).count("conv_general_dilated[")
    # Three of 4, 3 and 4 taps; those of 4 are three each again.
    assert count == (7 if jax.default_backend() == "cpu" else 1)
    same(fast_fir.convolve(x, kernel), fast_fir.plain(x, kernel, 1))
    few = jax.make_jaxpr(fast_fir.convolve)(x[:, :400], kernel)  # as a stream's chunk
    assert str(few).count("conv_general_dilated[") == 1


def test_a_program_for_other_devices_is_as_they_like_it():
    """compile_check makes programs for accelerators on machines that have none."""
    device = AbstractDevice("TPU v5 lite", 1, "tpu")
    x, kernel = noise(1, 1200, 320), noise(7, 320, 8)
    with use_abstract_mesh(AbstractMesh((1,), ("data",), abstract_device=device)):
        made = jax.make_jaxpr(fast_fir.convolve)(x, kernel)
        assert backend.turns_at_once(4) == 1
    assert str(made).count("conv_general_dilated[") == 1


def test_sines_and_exponentials_are_close_enough():
    x = np.concatenate([noise(2000), 100 * noise(2000, seed=1), np.zeros(1, np.float32)])
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(sine_squared(x), np.sin(exact) ** 2, atol=5e-7)
    slope = jax.vmap(jax.grad(sine_squared))(x)
    np.testing.assert_allclose(slope, np.sin(2 * exact), atol=1e-5)
    np.testing.assert_allclose(elu(x), np.where(x > 0, x, np.expm1(np.minimum(x, 0))), atol=2e-7)
    assert jax.grad(elu)(0.0) == 1


def test_lstm_skips_and_reverses_by_clip():
    x, length = noise(2, 6, 4), jnp.array([6, 4])
    layer = LSTM(4, 2, bidirectional=True)
    variables = initial(layer, x)
    y, _ = run(layer, variables, x, length)
    alone, _ = run(layer, variables, x[1:, :4])
    same(y[1, :4], alone[0])
    assert y.shape == (2, 6, 8)


def test_nearest_is_the_closest_row():
    query, table = noise(2, 30, 5), noise(17, 5, seed=1)
    distance = ((query[:, :, None] - table) ** 2).sum(-1)
    np.testing.assert_array_equal(
        nearest_euclidean(query, *search_columns(table)), distance.argmin(-1)
    )
    table[9] = table[3]
    assert not np.any(np.asarray(nearest_euclidean(query, *search_columns(table))) == 9)


QUANTISERS = {
    "residual": lambda learning: ResidualEuclidean(6, 16, 6, 4, learning),
    "split": lambda learning: SplitResidual(6, 16, 4, 4, 1, learning),
}


@pytest.mark.parametrize("kind", QUANTISERS)
@pytest.mark.parametrize("learning", ["ema", "gradient"])
def test_levels_masks_and_gradients(kind, learning):
    quantizer = QUANTISERS[kind](learning)
    latent, mask = jnp.asarray(noise(3, 8, 6)), jnp.arange(8) < jnp.array([8, 5, 2])[:, None]
    variables = initial(quantizer, latent, mask)
    full = run(quantizer, variables, latent, mask)
    assert full.codes.shape == (3, 8, 4)
    assert full.query.shape[:3] == (3, 8, 4)
    looked = run(quantizer, variables, full.codes, method="lookup")
    valid = np.asarray(mask)
    same(full.quantised[valid], looked[valid])
    two = run(quantizer, variables, latent, mask, levels=2)
    np.testing.assert_array_equal(two.codes, full.codes[..., :2])
    each = run(quantizer, variables, latent, mask, jnp.array([4, 2, 1]))
    same(each.quantised[0], full.quantised[0])
    same(each.quantised[1, :5], two.quantised[1, :5])
    same(each.loss[1], two.loss[1])
    assert not np.any(each.codes[2, :, 1:])
    with pytest.raises(ValueError, match="1 to 4"):
        run(quantizer, variables, latent, mask, levels=5)

    def total(x):
        return jnp.sum(run(quantizer, variables, x, mask).quantised[valid])

    assert np.abs(jax.grad(total)(latent)).min(axis=-1)[valid].min() > 0

    def loss(params):
        return quantizer.apply({**variables, "params": params}, latent, mask).loss.sum()

    pulls = jax.grad(loss)(variables.get("params", {}))
    books = [v for p, v in jax.tree.leaves_with_path(pulls) if "codebook" in str(p)]
    assert len(books) == (4 if learning == "gradient" else 0)
    assert all(np.abs(book).max() > 0 for book in books)


def test_running_means_move_to_what_chose_them():
    quantizer = ResidualEuclidean(3, 4, 3, 1, "ema", decay=0.9)
    centres = 4 * noise(4, 3)
    latent = jnp.asarray((centres[:, None] + 0.01 * noise(4, 50, 3)).reshape(1, 200, 3))
    mask = jnp.ones((1, 200), bool)
    variables = initial(quantizer, latent, mask)
    variables["batch_stats"]["level_0"]["codebook"] = jnp.asarray(centres + 0.5)
    before = variables
    for _ in range(150):
        _, moved = run(quantizer, variables, latent, mask, train=True, mutable=("batch_stats",))
        variables = {**variables, **moved}
    same(variables["batch_stats"]["level_0"]["cluster_size"], np.full(4, 50.0))
    book = variables["batch_stats"]["level_0"]["codebook"]
    np.testing.assert_allclose(book, centres, atol=0.02)
    nothing = jnp.zeros((1, 200), bool)
    _, same_still = run(quantizer, before, latent, nothing, train=True, mutable=("batch_stats",))
    for a, b in zip(jax.tree.leaves(same_still), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(a, b)


def test_dropout_draws_levels_for_a_share_of_clips():
    drawn = np.asarray(draw_levels(jax.random.key(0), 400, 8, 0.5))
    assert set(drawn[:200]) == set(range(1, 9))
    assert set(drawn[200:]) == {8}


def test_silence_has_a_direction_of_zero_and_a_gradient():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0], [1e-13, 0.0]])
    unit, gradient = jax.value_and_grad(lambda x: jnp.sum(normalise(x)[:, 0]))(x)
    np.testing.assert_allclose(normalise(x), [[0.6, 0.8], [0, 0], [0, 0]], rtol=1e-6)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient, [[0.128, -0.096], [0, 0], [0, 0]], rtol=1e-5)
    assert np.isfinite(unit)
