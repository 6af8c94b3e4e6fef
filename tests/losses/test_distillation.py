"""Distillation: what it measures, what it ignores, and that a codec learns it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax.losses.distillation import at_frames, distillation_loss


@pytest.fixture(scope="module")
def pair():
    keys = jax.random.split(jax.random.key(0))
    return [jax.random.normal(key, (2, 5, 4)) for key in keys]


MASK = jnp.array([[True] * 5, [True] * 3 + [False] * 2])


def test_a_frame_is_judged_by_its_direction(pair):
    student, teacher = pair
    np.testing.assert_allclose(distillation_loss(3 * teacher, teacher, MASK), 0.0, atol=1e-6)
    np.testing.assert_allclose(distillation_loss(-teacher, teacher, MASK), 2.0, atol=1e-6)
    a, b = np.asarray(student[1, :3]), np.asarray(teacher[1, :3])
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    found = distillation_loss(student, teacher, MASK)[1]
    np.testing.assert_allclose(found, 1 - cosine.mean(), rtol=1e-5)


def test_a_channel_is_judged_over_time(pair):
    """Equation 3 of arXiv 2308.16692."""
    student, teacher = pair
    a, b = np.asarray(student[1, :3]), np.asarray(teacher[1, :3])
    cosine = (a * b).sum(0) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0)
    found = distillation_loss(student, teacher, MASK, "channel")[1]
    np.testing.assert_allclose(found, -np.log(1 / (1 + np.exp(-cosine))).mean(), rtol=1e-5)


@pytest.mark.parametrize("kind", ["frame", "channel"])
def test_padding_and_silence_do_no_harm(pair, kind):
    student, teacher = pair
    loud = jnp.where(MASK[..., None], student, 1e6)
    np.testing.assert_array_equal(
        distillation_loss(loud, teacher, MASK, kind),
        distillation_loss(student, teacher, MASK, kind),
    )
    none = jnp.zeros_like(MASK)

    def total(x, y, mask):
        return distillation_loss(x, y, mask, kind).sum()

    assert total(student, teacher, none) == 0
    silent = jax.grad(total)(jnp.zeros_like(student), teacher, MASK)
    assert np.isfinite(silent).all()
    assert not np.any(jax.grad(total, argnums=1)(student, teacher, MASK))


def test_teacher_frames_move_to_the_codecs():
    centres = np.arange(6) * 0.02 + 0.0125
    ramp = jnp.asarray(centres, jnp.float32)[None, :, None]
    moved = at_frames(ramp, jnp.asarray(centres), 10, 0.01)
    wanted = np.clip((np.arange(10) + 0.5) * 0.01, centres[0], centres[-1])
    np.testing.assert_allclose(moved[0, :, 0], wanted, atol=1e-6)


def test_another_kind_is_refused(pair):
    with pytest.raises(ValueError, match="frame or channel"):
        distillation_loss(*pair, MASK, "cosine")
