"""Any codec trains: the toy through a whole run, every family through a step with everything on."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import llmcodec_jax
from configs import base
from llmcodec_jax.codec import registry, store
from llmcodec_jax.errors import UsageError
from llmcodec_jax.lm.decoder import init_params
from llmcodec_jax.losses.spectral import CLIP, mel_loss
from llmcodec_jax.training.config import read_config
from llmcodec_jax.training.gradients import sound_losses
from llmcodec_jax.training.method import Method
from llmcodec_jax.training.run import run
from llmcodec_jax.training.schedules import Phase
from llmcodec_jax.training.state import init_state
from llmcodec_jax.training.step import train_step
from llmcodec_jax.types import Batch
from tests.codec.families import EXAMPLES
from tests.codec.toy_codec import TOY, ToyCodec
from tests.tiny import babble, tiny_lm_config

QUICK = ("auv", "toy")


@pytest.fixture(scope="module", autouse=True)
def with_toy():
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(registry.FAMILIES, "toy", TOY)
        yield


def small_config(codec) -> ConfigDict:
    """configs/base.py around another codec, small, its bridge the quantiser's own search."""
    c = base.get_config()
    c.total_steps, c.init = 3, ""
    c.codec = ConfigDict({"name": registry.family_of(codec).name, **registry.to_fields(codec)})
    c.discriminators.update(
        periods=(2,), period_channels=(4, 8), scales=1, scale_channels=(4, 8), dtype="float32"
    )
    c.lm.update(begin_token=0, horizons=2, bank=4, dtype="float32")
    c.bridge.update(logits="native", mode="ste", jitter_seconds=0.0)
    c.schedule.update(
        codec_start=0.0, discriminator_start=0.3, adversarial_start=0.3, lm_start=0.6,
        ftp_start=0.6, ftp_ramp=0.0, sa_start=0.6, sa_ramp=0.0,
    )  # fmt: skip
    return c


def small_batch(codec) -> Batch:
    samples = -(-4096 // codec.hop) * codec.hop
    lengths = np.array([samples, samples - 700], np.int32)
    wav = np.stack([babble(samples / codec.sample_rate, i, codec.sample_rate) for i in range(2)])
    wav = np.where(np.arange(samples) < lengths[:, None], wav[:, :samples], 0).astype(np.float32)
    rng = np.random.default_rng(0)
    return Batch(
        wav=wav,
        wav_length=lengths,
        text_ids=rng.integers(1, 60, (2, 6)).astype(np.int32),
        text_length=np.array([6, 3], np.int32),
        domain=np.zeros(2, np.int32),
        example_id=np.arange(2, dtype=np.uint32),
    )


def small_method(codec) -> Method:
    return Method.from_config(read_config(small_config(codec)), tiny_lm_config(3))


@pytest.mark.parametrize("name", QUICK)
def test_the_training_mel_is_that_of_the_codecs_rate(name):
    codec = EXAMPLES[name]
    batch, rng = small_batch(codec), np.random.default_rng(1)
    wav = batch.wav + 0.01 * rng.standard_normal(batch.wav.shape).astype(np.float32)
    total, count = sound_losses(small_method(codec), batch, wav)["mel"]
    clipped = (np.clip(x, -CLIP, CLIP) for x in (batch.wav, wav))
    expected = mel_loss(*clipped, batch.wav_length, sample_rate=codec.sample_rate)
    np.testing.assert_allclose(total / count, expected, rtol=1e-5)
    other = mel_loss(batch.wav, wav, batch.wav_length, sample_rate=codec.sample_rate // 2)
    assert abs(other / expected - 1) > 1e-3  # the rate matters


def codec_params(state):
    return state.params["codec"]


# By default the toy alone: AUV's whole step is what tests/training/test_step.py takes.
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "toy" else pytest.mark.slow) for n in EXAMPLES]
)
def test_a_step_with_everything_on_moves_every_part(name):
    codec = EXAMPLES[name]
    method, batch = small_method(codec), small_batch(codec)
    lm = init_params(tiny_lm_config(3), jax.random.key(0), jnp.float32)
    state = jax.jit(lambda lm: init_state(method, lm, 0))(lm)
    state = state.replace(step=jnp.int32(2))
    phase = method.phase(2)
    assert phase == Phase(codec=True, discriminator=True, lm=True)
    step = jax.jit(functools.partial(train_step, method=method, phase=phase))
    after, report = step(state, lm, batch)
    bad = [key for key, value in report.items() if not np.isfinite(value).all()]
    assert not bad
    assert report["skipped"] == 0
    assert report["accuracy/bridge"] == 1  # the bridge is the quantiser's own search
    for group in ("encoder", "decoder", "audio_embedding", "ftp_heads", "discriminators"):
        assert report[f"grad_norm/{group}"] > 0, group
    running = getattr(codec, "learning", "gradient") == "ema"  # codebooks are running means
    for part in ("encoder", "quantizer", "decoder"):
        of = (lambda s: s.batch_stats) if running and part == "quantizer" else codec_params
        pair = (jax.tree.leaves(of(s)[part]) for s in (state, after))
        assert any(np.any(np.asarray(a) != b) for a, b in zip(*pair, strict=True)), part


def balanced_method(codec) -> Method:
    """As EnCodec is published: drawn levels, a balancer; few losses, for a quick compilation."""
    c = small_config(codec)
    c.lm.path, c.lm.config = "", None
    c.training.update(quantiser_dropout=1.0, balance=1.0, train_norm=True)
    c.schedule.update(lm_start=2.0, ftp_start=2.0, sa_start=2.0)
    c.weights.update(complex_stft=0.0, multi_resolution_stft=0.0, multi_scale_mel=0.0, r1=0.0)
    return Method.from_config(read_config(c), None)


@pytest.mark.slow
def test_the_balancer_and_drawn_levels_keep_the_steps_shapes():
    codec = EXAMPLES["encodec_running"]
    method = balanced_method(codec)
    state = jax.eval_shape(lambda: init_state(method, None, 0))
    for phase in (Phase(True, False, False), Phase(True, True, False)):
        step = functools.partial(train_step, method=method, phase=phase)
        after, report = jax.eval_shape(step, state, None, small_batch(codec))
        assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
            lambda x: (x.shape, x.dtype), state
        )
        assert ("loss/feature_matching" in report) == phase.discriminator
        assert {"loss/mel", "loss/vq"} <= set(report)


@pytest.mark.slow
def test_a_step_with_the_balancer_and_drawn_levels():
    codec = EXAMPLES["encodec_running"]
    method = balanced_method(codec)
    state = init_state(method, None, 0).replace(step=jnp.int32(2))
    step = functools.partial(train_step, method=method, phase=Phase(True, True, False))
    after, report = jax.jit(step)(state, None, small_batch(codec))
    assert report["skipped"] == 0
    assert report["grad_norm/decoder"] > 0
    assert report["grad_norm/encoder"] > 0
    used = after.code_shares.sum(-1)  # the first level by all clips, the last by few
    assert used[0] >= used[-1]


def test_drawn_levels_are_asked_of_residual_codecs_alone():
    c = small_config(EXAMPLES["wavtokenizer"])
    c.training.quantiser_dropout = 0.5
    with pytest.raises(UsageError, match="quantiser_dropout: WavTokenizer has one level"):
        Method.from_config(read_config(c), tiny_lm_config(3))


def test_the_toy_goes_through_a_run_and_comes_out_usable(tmp_path, tiny_lm, speech):
    """One step in each of three phases, evaluation, checkpoints, the finished codec in use."""
    c = small_config(ToyCodec())
    c.lm.path, c.lm.config = str(tiny_lm), None
    c.data.update(
        sources=(f"librispeech:{speech}",), batch_size=2, eval_batch_size=2, eval_fraction=0.2,
        clip_seconds=0.5, max_text=8,
    )  # fmt: skip
    c.log.update(every=1, eval_every=3, eval_clips=2, listen=1, checkpoint_every=3)
    assert run(c, tmp_path / "run")
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    steps = [row for row in rows if "loss/mel" in row]
    assert [row["step"] for row in steps] == [0, 1, 2]
    assert all(np.isfinite(list(row.values())).all() for row in steps)
    assert all(row["grad_norm/encoder"] > 0 for row in steps)
    assert ["loss/discriminator" in row for row in steps] == [False, True, True]
    assert ["loss/ftp/1" in row for row in steps] == [False, False, True]
    looks = [row for row in rows if "eval/mel" in row]
    assert [row["step"] for row in looks] == [0, 3]
    codec = llmcodec_jax.load_codec(tmp_path / "run")
    assert (codec.architecture, codec.sample_rate, codec.levels) == ("toy", 24_000, 3)
    codes = codec.encode(babble(0.4, 0), 16_000)
    assert codes.shape == (20, 3)
    assert codec.decode(codes).shape == (20 * 480,)
    c.init, c.total_steps = str(tmp_path / "run"), 1  # and it starts another run
    c.schedule.update(discriminator_start=2.0, adversarial_start=2.0, lm_start=2.0)
    c.lm.path = ""
    assert run(c, tmp_path / "again")
    first = store.load(tmp_path / "run")[1]["params"]
    moved = store.load(tmp_path / "again")[1]["params"]
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), first, moved)
    assert 0 < max(jax.tree.leaves(apart)) < 0.01
