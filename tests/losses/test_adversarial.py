import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax import discriminators
from llmcodec_jax.losses import adversarial

SMALL = discriminators.Discriminators(
    periods=(3,),
    scales=2,
    period_channels=(4, 8),
    scale_channels=(4, 8),
    dtype=jnp.float32,
)
judge_all = jax.jit(SMALL.apply)


def _wav(clips, samples, seed=0):
    return 0.1 * np.random.default_rng(seed).normal(size=(clips, samples)).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    return jax.jit(SMALL.init)(jax.random.key(0), _wav(1, 1600))


def test_published_parameter_counts():
    shapes = jax.eval_shape(
        discriminators.DiscriminatorConfig().module().init, jax.random.key(0), jnp.zeros((1, 8000))
    )["params"]
    counts = {"period": 0, "scale": 0}
    for name, tree in shapes.items():
        counts[name.split("_")[0]] += sum(np.prod(x.shape) for x in jax.tree.leaves(tree))
    assert counts == {"period": 33_168_645, "scale": 101_397_123}


@pytest.mark.parametrize(("size", "stride"), [(5, 1), (5, 3), (41, 2), (3, 4)])
@pytest.mark.parametrize(("samples", "channels"), [(2, 3), (61, 3), (300, 48)])
def test_strided_conv_is_a_same_convolution(size, stride, samples, channels):
    """Of narrow signals, which are convolved plainly, and wide ones, whose long kernels split."""
    x = jax.random.normal(jax.random.key(0), (2, samples, channels))
    kernel = jax.random.normal(jax.random.key(1), (size, channels, 4)) * (3 / channels) ** 0.5
    pad = (size - 1) // 2
    expected = jax.lax.conv_general_dilated(
        x, kernel, (stride,), [(pad, pad)], dimension_numbers=("NWC", "WIO", "NWC")
    )
    np.testing.assert_allclose(
        discriminators.strided_conv(x, kernel, stride), expected, rtol=1e-4, atol=1e-4
    )


def test_nothing_depends_on_padding(params):
    real, fake = _wav(2, 1700), _wav(2, 1700, seed=1)
    lengths = np.array([1700, 1111], np.int32)
    padded = [np.pad(w, ((0, 0), (0, 600)), constant_values=9) for w in (real, fake)]
    (real_maps, masks), (fake_maps, _) = (judge_all(params, w, lengths) for w in padded)
    (alone_real, alone_masks), (alone_fake, _) = (
        judge_all(params, w[1:, :1111]) for w in (real, fake)
    )
    for maps, kept, alone, alone_kept in zip(
        real_maps, masks, alone_real, alone_masks, strict=True
    ):
        for f, m, b, bm in zip(maps, kept, alone, alone_kept, strict=True):
            np.testing.assert_allclose(f[1][m[1]], b[0][bm[0]], atol=1e-5)
            assert not np.any(f[1][~m[1]])
    second = jax.tree.map(lambda x: x[1:], (real_maps, fake_maps, masks))
    alone = (alone_real, alone_fake, alone_masks)
    for loss in (adversarial.discriminator_loss, adversarial.feature_matching_loss):
        np.testing.assert_allclose(loss(*second)[0], loss(*alone)[0], rtol=1e-5)
    np.testing.assert_allclose(
        adversarial.generator_loss(*second[1:])[0],
        adversarial.generator_loss(*alone[1:])[0],
        rtol=1e-5,
    )


def test_values_by_hand():
    mask = [[jnp.array([[True, True, False]])] * 2]
    hidden = jnp.array([[[1.0], [3.0], [100.0]]])
    real = [[hidden, jnp.array([[[2.0], [0.5], [-50.0]]])]]
    fake = [[hidden + 1, jnp.array([[[-2.0], [1.0], [50.0]]])]]
    total, count = adversarial.discriminator_loss(real, fake, mask)
    assert (float(total), float(count)) == (0.25 + 1.0, 1)
    assert float(adversarial.generator_loss(fake, mask)[0]) == 0.5
    assert float(adversarial.feature_matching_loss(real, fake, mask)[0]) == 1.0
    total, _ = adversarial.discriminator_loss(real, fake, mask, "lsgan")
    assert float(total) == pytest.approx((1 + 0.25) / 2 + (4 + 1) / 2)
    assert float(adversarial.generator_loss(fake, mask, "lsgan")[0]) == pytest.approx((9 + 0) / 2)
    with pytest.raises(ValueError, match="hinge"):
        adversarial.generator_loss(fake, mask, "wasserstein")


def test_both_players_gradients_from_one_forward_pass(params):
    real, fake = _wav(2, 1200), jnp.asarray(_wav(2, 1200, seed=1))
    lengths = np.array([1200, 900], np.int32)

    @jax.jit
    def shared(params, fake):
        real_maps, pull_real, masks = jax.vjp(
            lambda p: SMALL.apply(p, real, lengths), params, has_aux=True
        )
        fake_maps, pull_fake, _ = jax.vjp(
            lambda p, w: SMALL.apply(p, w, lengths), params, fake, has_aux=True
        )
        to_real, to_fake = jax.grad(judge, (0, 1))(real_maps, fake_maps, masks)
        judged = jax.tree.map(jnp.add, pull_real(to_real)[0], pull_fake(to_fake)[0])
        return judged, pull_fake(jax.grad(fool)(fake_maps, real_maps, masks))[1]

    def judge(real_maps, fake_maps, masks):
        return adversarial.discriminator_loss(real_maps, fake_maps, masks)[0]

    def fool(fake_maps, real_maps, masks):
        score = adversarial.generator_loss(fake_maps, masks)[0]
        return score + adversarial.feature_matching_loss(real_maps, fake_maps, masks)[0]

    def apart(player):
        def loss(params, fake):
            real_maps, masks = SMALL.apply(params, real, lengths)
            fake_maps, _ = SMALL.apply(params, fake, lengths)
            if player == "judge":
                return judge(real_maps, fake_maps, masks)
            return fool(fake_maps, real_maps, masks)

        return jax.jit(jax.grad(loss, 0 if player == "judge" else 1))(params, fake)

    judged, fooled = shared(params, fake)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), judged, apart("judge")
    )
    np.testing.assert_allclose(fooled, apart("fool"), rtol=1e-4, atol=1e-6)
    assert not np.any(fooled[1, 900:])


def test_r1_is_the_mean_squared_patch_gradient():
    """A linear judge y_t = 3 x_t + x_{t+1}: every patch's squared gradient is 10."""

    def linear(wav):
        logits = 3 * wav[:, :-1, None] + wav[:, 1:, None]
        return [[logits]], [[jnp.ones(logits.shape[:2], bool)]]

    penalty = jax.jit(lambda wav, key: adversarial.r1_penalty(linear, wav, key, 2.0, 16)[0])
    for samples in (500, 8000):
        values = [float(penalty(_wav(4, samples), jax.random.key(s))) for s in range(8)]
        assert np.mean(values) / (4 * 16) == pytest.approx(10, rel=0.1)


def test_r1_has_a_parameter_gradient(params):
    def penalty(p):
        return adversarial.r1_penalty(lambda w: SMALL.apply(p, w), _wav(1, 800), jax.random.key(1))[
            0
        ]

    norms = [float(jnp.abs(g).sum()) for g in jax.tree.leaves(jax.jit(jax.grad(penalty))(params))]
    assert np.isfinite(norms).all()
    assert max(norms) > 0


def test_r1_differentiates_like_its_plain_form(params):
    """grad of ||grad||^2, though the penalty takes the second derivative along the first."""
    wav, key = _wav(2, 900), jax.random.key(1)

    def ours(p):
        return adversarial.r1_penalty(lambda w: SMALL.apply(p, w), wav, key, 2.0, 4)[0]

    def plain(p):
        def score(wav):
            features, masks = SMALL.apply(p, wav)
            total = 0.0
            for index, (maps, kept) in enumerate(zip(features, masks, strict=True)):
                logits, mask = maps[-1][..., 0], kept[-1]
                signs = jax.random.rademacher(
                    jax.random.fold_in(key, index), logits.shape, jnp.float32
                )
                total += jnp.sum(signs * logits * mask / jnp.sqrt(mask.sum(1, keepdims=True)))
            return total

        return 4.0 * jnp.sum(jnp.square(jax.grad(score)(wav)))

    (value, gradient), (expected, reference) = (
        jax.jit(jax.value_and_grad(f))(params) for f in (ours, plain)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(reference))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * scale),
        gradient,
        reference,
    )
