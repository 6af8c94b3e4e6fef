import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax.losses import spectral

acoustic_losses = jax.jit(
    functools.partial(spectral.acoustic_losses, sample_rate=16_000),
    static_argnames=("phase", "convergence"),
)
NAMES = ("mel", "multi_scale_mel", "multi_resolution_stft", "complex_stft")


def _speechlike(clips, samples, seed=0):
    noise = np.random.default_rng(seed).normal(size=(clips, samples))
    return (0.1 * noise * np.sin(np.arange(samples) / 900) ** 2).astype(np.float32)


def test_padding_changes_nothing():
    reference, estimate = _speechlike(2, 4000), _speechlike(2, 4000, seed=1)
    lengths = np.array([4000, 2501], np.int32)
    garbage = 0.5 * np.ones((2, 3000), np.float32)
    padded = acoustic_losses(
        np.concatenate([reference, garbage], 1),
        np.concatenate([np.where(np.arange(4000) < lengths[:, None], estimate, 9), garbage], 1),
        lengths,
    )
    bare = acoustic_losses(reference[1:, :2501], estimate[1:, :2501])
    for name in NAMES:
        assert float(padded[name][1]) == pytest.approx(float(bare[name][0]), rel=2e-5), name


def test_shared_analysis_equals_the_separate_losses():
    reference, estimate = _speechlike(2, 5000), _speechlike(2, 5000, seed=1)
    lengths = np.array([5000, 3000], np.int32)
    shared = acoustic_losses(reference, estimate, lengths)
    for name in NAMES:
        rate = {"sample_rate": 16_000} if name.endswith("mel") else {}
        loss = jax.jit(functools.partial(getattr(spectral, f"{name}_loss"), reduce=False, **rate))
        np.testing.assert_allclose(shared[name], loss(reference, estimate, lengths), rtol=1e-6)


@functools.partial(jax.jit, static_argnames="phase")
def _total(reference, estimate, phase):
    def total(estimate):
        return sum(v.sum() for v in acoustic_losses(reference, estimate, phase=phase).values())

    return jax.value_and_grad(total)(estimate)


@pytest.mark.parametrize("phase", ["unit", "magnitude"])
@pytest.mark.parametrize("case", ["both silent", "silent reference", "silent estimate", "equal"])
def test_gradients_are_finite(case, phase):
    sound, silence = _speechlike(1, 4000), np.zeros((1, 4000), np.float32)
    reference = silence if case in ("both silent", "silent reference") else sound
    estimate = silence if case in ("both silent", "silent estimate") else sound
    value, gradient = _total(reference, estimate, phase)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_weighting_phase_by_magnitude_bounds_its_gradient_at_silence():
    reference = _speechlike(1, 4000)
    estimate = jnp.full((1, 4000), 1e-6) * np.random.default_rng(2).normal(size=(1, 4000))

    def steepest(phase):
        def loss(estimate):
            return spectral.multi_resolution_stft_loss(
                reference, estimate, phase_weight=1.0, phase=phase
            ) - spectral.multi_resolution_stft_loss(reference, estimate)

        return float(jnp.abs(jax.jit(jax.grad(loss))(estimate)).max())

    assert steepest("magnitude") < 1
    assert steepest("unit") > 100 * steepest("magnitude")


def test_a_quiet_clip_is_not_hidden_by_a_loud_one():
    reference, estimate = _speechlike(2, 4000), _speechlike(2, 4000, seed=1)
    reference[1] *= 1e-2
    estimate[1] = 0
    estimate[0] = reference[0]
    item = spectral.multi_resolution_stft_loss(reference, estimate, reduce=False)
    batch = spectral.multi_resolution_stft_loss(
        reference, estimate, convergence="batch", reduce=False
    )
    assert float(item[1] - batch[1]) > 0.9
    assert float(batch[0]) < 0.1


def test_clips_shorter_than_a_window_have_losses():
    reference, estimate = _speechlike(2, 300), _speechlike(2, 300, seed=1)
    losses = acoustic_losses(reference, estimate, np.array([300, 7], np.int32))
    assert all(np.isfinite(v).all() for v in losses.values())


def test_unknown_options_are_refused():
    wav = _speechlike(1, 2048)
    with pytest.raises(ValueError, match="phase is"):
        spectral.complex_stft_loss(wav, wav, phase="loud")
    with pytest.raises(ValueError, match="convergence is"):
        spectral.complex_stft_loss(wav, wav, convergence="all")


def test_a_mel_without_its_rate_is_refused_and_the_rate_matters():
    reference, estimate = _speechlike(1, 4000), _speechlike(1, 4000, seed=1)
    with pytest.raises(TypeError, match="sample_rate"):
        spectral.mel_loss(reference, estimate)
    values = [spectral.mel_loss(reference, estimate, sample_rate=r) for r in (16_000, 24_000)]
    assert abs(float(values[0] - values[1])) > 1e-3


def test_only_the_named_losses_are_computed():
    reference, estimate = _speechlike(1, 4000), _speechlike(1, 4000, seed=1)
    every = spectral.acoustic_losses(reference, estimate, sample_rate=16_000)
    for name in NAMES:
        one = spectral.acoustic_losses(reference, estimate, sample_rate=16_000, names=(name,))
        assert set(one) == {name}
        np.testing.assert_allclose(one[name], every[name], rtol=1e-6)
