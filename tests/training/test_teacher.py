"""A codec learns what a teacher hears: batches carry it, the loss falls, the codec moves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import codec_pretrain
from llmcodec_jax.errors import UsageError
from llmcodec_jax.evaluation import additional
from llmcodec_jax.semantics import published
from llmcodec_jax.training import teacher as teachers
from llmcodec_jax.training.config import read_config
from llmcodec_jax.training.gradients import taught_loss
from llmcodec_jax.training.method import Distillation, Method
from llmcodec_jax.training.schedules import Phase
from llmcodec_jax.training.state import init_state
from llmcodec_jax.training.step import train_step
from llmcodec_jax.types import CodecOutput
from tests.semantics.test_units import TINY
from tests.training.test_step import tiny_batch

ABSENT = additional.absent(["wer"])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    variables = jax.jit(TINY.init)(jax.random.key(0), np.zeros((1, 4000), np.float32))
    published.save(folder, TINY, jax.device_get(variables))
    return folder


def method(folder, **changes) -> Method:
    c = codec_pretrain.get_config()
    c.total_steps = 40
    c.codec.update(
        head_dim=16, width=32, encoder_layers=1, decoder_layers=1, codebook_size=64, dtype="float32"
    )
    c.discriminators.enabled = False
    for name in ("mel", "mel_final", "multi_scale_mel", "multi_resolution_stft", "complex_stft"):
        c.weights[name] = 0.0
    c.weights.distillation = 1.0
    c.distillation.update(teacher=str(folder), width=16, layer=2, **changes)
    for group in ("encoder", "decoder", "distillation"):
        c.optim.groups[group].update(optimizer="adamw", learning_rate=3e-3, warmup=0.0)
    return Method.from_config(read_config(c), None)


def test_the_gradient_reaches_the_encoder_through_the_first_level(encoder):
    """Straight through the quantiser: what the map is told, the latent is told."""
    taught = method(encoder)
    hear = teachers.with_features(teachers.open_teacher(taught.distillation), taught.codec)
    batch = hear(tiny_batch())
    assert batch.features.shape == (4, 30, 16)
    keys = jax.random.split(jax.random.key(0))
    latent = jax.random.normal(keys[0], (4, 30, 32))
    kernel = jax.random.normal(keys[1], (32, 16))
    mask = jnp.arange(30) < -(-batch.wav_length // 320)[:, None]
    output = CodecOutput(latent, jnp.ones((4, 30), jnp.int32), latent, latent, None, mask)
    codec = taught.codec
    variables = jax.eval_shape(lambda k: codec.init(k, batch.wav[:1], method="encode"), keys[0])
    params = jax.tree.map(lambda x: jnp.full(x.shape, 0.1), variables["params"])

    @jax.jit
    def loss(latent, kernel):
        given = output.replace(latent=latent)
        found = taught_loss(taught, {"distillation": {"kernel": kernel}}, params, {}, batch, given)
        return found["distillation"][0]

    to_latent, to_kernel = jax.jit(jax.grad(loss, argnums=(0, 1)))(latent, kernel)
    assert jnp.abs(to_latent[mask]).min(axis=-1).max() > 0
    assert not to_latent[~mask].any()
    assert jnp.abs(to_kernel).max() > 0
    # The first level is what is judged: another latent with the same codes costs the same.
    assert loss(2 * latent, kernel) == pytest.approx(float(loss(latent, kernel)), rel=1e-5)


@pytest.mark.slow
def test_a_codec_learns_what_its_teacher_hears(encoder):
    taught = method(encoder)
    hear = teachers.with_features(teachers.open_teacher(taught.distillation), taught.codec)
    batch = hear(tiny_batch())
    assert batch.features.shape == (4, 30, 16)
    state = init_state(taught, None, 0)
    step = jax.jit(functools.partial(train_step, method=taught, phase=Phase(True, False, False)))
    losses = []
    before = state.params["codec"]
    for _ in range(12):
        state, report = step(state, None, batch)
        losses.append(float(report["loss/distillation"]))
    assert losses[-1] < 0.7 * losses[0]
    assert int(report["skipped"]) == 0
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before, state.params["codec"])
    assert moved["quantizer"]  # there is one
    assert max(jax.tree.leaves(moved)) > 0


def test_clips_are_heard_alone(encoder):
    """What follows a clip in its row changes nothing that counts."""
    taught = method(encoder)
    hear = teachers.with_features(teachers.open_teacher(taught.distillation), taught.codec)
    batch = tiny_batch()
    loud = dataclasses.replace(
        batch, wav=np.where(np.arange(9600) < batch.wav_length[:, None], batch.wav, 0.5)
    )
    a, b = hear(batch).features, hear(loud).features
    for row, length in enumerate(batch.wav_length):
        np.testing.assert_allclose(a[row, : length // 320], b[row, : length // 320], atol=1e-4)


def test_what_cannot_be_is_refused(encoder):
    with pytest.raises(UsageError, match="16 wide"):
        teachers.open_teacher(Distillation(teacher=str(encoder), width=99, layer=1))
    with pytest.raises(UsageError, match="0 to 2"):
        teachers.open_teacher(Distillation(teacher=str(encoder), width=16, layer=3))
    with pytest.raises(UsageError, match="go together"):
        dataclasses.replace(method(encoder), distillation=Distillation())


@pytest.mark.slow
@pytest.mark.skipif(bool(ABSENT), reason=ABSENT.get("wer", ""))
def test_whispers_encoder_teaches(encoder):
    """Real features: a speech-like sound is not silence, and 50 frames a second come."""
    heard = teachers.WhisperTeacher()
    batch = tiny_batch(4)
    features, centres = heard(np.asarray(batch.wav), batch.wav_length)
    assert features.shape == (4, 30, heard.width)
    assert heard.width == 384
    np.testing.assert_allclose(np.diff(centres), 0.02)
    silent, _ = heard(np.zeros((1, 9600), np.float32), np.array([9600]))
    assert np.abs(features[0] - silent[0]).mean() > 0.1
