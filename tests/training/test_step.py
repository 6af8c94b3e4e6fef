"""The step: exact accumulation, skipped bad updates, frozen phases, where gradients may go."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base, miniature, quickstart
from llmcodec_jax.lm.decoder import init_params
from llmcodec_jax.training import metrics, terms
from llmcodec_jax.training.config import read_config
from llmcodec_jax.training.gradients import batch_counts, quantiser_losses, sound_losses
from llmcodec_jax.training.method import Method
from llmcodec_jax.training.optim import Group
from llmcodec_jax.training.schedules import NEVER, Phase
from llmcodec_jax.training.state import init_state, stream
from llmcodec_jax.training.step import gather_gradients, penalise, penalty, train_step
from llmcodec_jax.types import Batch, CodecOutput
from tests.tiny import babble, tiny_lm_config

EVERYTHING = Phase(codec=True, discriminator=True, lm=True, penalty=True)


def tiny_method(**changes) -> Method:
    """configs/base.py shrunk until it compiles in seconds; every part is there."""
    c = base.get_config()
    c.total_steps = 10
    c.codec.update(
        head_dim=16, width=32, encoder_layers=1, decoder_layers=1, codebook_size=64, dtype="float32"
    )
    c.discriminators.update(
        periods=(2,), period_channels=(4, 8), scales=1, scale_channels=(4, 8), dtype="float32"
    )
    c.lm.update(horizons=2, bank=4, dtype="float32")
    c.schedule.update(codec_start=0.0, adversarial_start=0.0, ftp_start=0.0, sa_start=0.0)
    c.bridge.update(mode="ste", label_noise=0.0, jitter_seconds=0.0)
    method = Method.from_config(read_config(c), tiny_lm_config(3))
    return dataclasses.replace(method, **changes)


def tiny_batch(clips: int = 4, samples: int = 9600) -> Batch:
    """Uneven lengths, one clip without text."""
    rng = np.random.default_rng(0)
    lengths = np.array([samples, samples - 3000, 6400, 7001] * (clips // 4), np.int32)
    wav = np.stack([babble(samples / 16_000, seed) for seed in range(clips)])
    wav = np.where(np.arange(samples) < lengths[:, None], wav, 0).astype(np.float32)
    return Batch(
        wav=wav,
        wav_length=lengths,
        text_ids=rng.integers(1, 60, (clips, 6)).astype(np.int32),
        text_length=np.array([6, 3, 0, 5] * (clips // 4), np.int32),
        domain=np.zeros(clips, np.int32),
        example_id=np.arange(clips, dtype=np.uint32),
    )


@pytest.fixture(scope="module")
def lm():
    return init_params(tiny_lm_config(3), jax.random.key(0), jnp.float32)


@pytest.fixture(scope="module")
def state(lm):
    return jax.jit(lambda lm: init_state(tiny_method(), lm, 0))(lm)


@pytest.fixture(scope="module")
def full_step(lm, state):
    """The compiled step with everything on."""
    step = functools.partial(train_step, method=tiny_method(), phase=EVERYTHING)
    return jax.jit(step).lower(state, lm, tiny_batch()).compile()


def test_the_finite_check_is_computed_once(full_step, state):
    """Each parameter waits for it; XLA:CPU would compute it anew in the kernel of every one."""
    leaves = len(jax.tree.leaves((state.params, state.discriminator, state.batch_stats)))
    assert leaves < full_step.as_text().count(" is-finite(") < 3 * leaves


def test_steps_at_which_r1_is_due_are_a_phase_of_their_own(state, lm):
    method = tiny_method()
    every = method.game.r1_every
    assert [method.phase(step).penalty for step in (0, 1, every, every + 1)] == [1, 0, 1, 0]
    weights = dataclasses.replace(method.weights, r1=0.0)
    assert not tiny_method(weights=weights).phase(0).penalty

    def report(phase):
        step = functools.partial(train_step, method=method, phase=phase)
        return jax.eval_shape(step, state, lm, tiny_batch())[1]

    assert set(report(EVERYTHING)) - set(report(EVERYTHING._replace(penalty=False))) == {"loss/r1"}


def test_every_objective_is_there_and_finite(full_step, state, lm):
    _, report = full_step(state, lm, tiny_batch())
    expected = {"mel", "multi_scale_mel", "multi_resolution_stft", "complex_stft", "vq"}
    expected |= {"adversarial", "feature_matching", "discriminator", "r1", "bridge"}
    expected |= {"ftp/1", "ftp/2", "sa_cosine", "sa_contrastive"}
    assert expected <= {name.removeprefix("loss/") for name in report}
    bad = [name for name, value in report.items() if not np.isfinite(value).all()]
    assert not bad
    norms = {name for name in report if name.startswith("grad_norm/")}
    assert len(norms) == 6
    assert all(report[name] > 0 for name in norms)


def test_a_step_counts_its_codes_over_the_bridges_window(full_step, state, lm):
    batch, method = tiny_batch(), tiny_method()
    once, _ = full_step(state, lm, batch)
    frames = int(np.ceil(batch.wav_length / method.codec.hop).sum())
    assert float(once.code_share.sum()) == frames
    twice, _ = full_step(once, lm, batch)
    kept = np.exp(-frames / (method.bridge.frequency_window * method.codec.codebook_size))
    assert float(twice.code_share.sum()) == pytest.approx(frames * (kept + 1), rel=1e-5)


def well_conditioned(**changes) -> Method:
    """Without the log-STFT terms, whose gradient 1 / |X| turns the rounding of near-silent bins
    into differences of 1e-3, on one device too, as soon as matrix sizes change."""
    weights = dataclasses.replace(tiny_method().weights, multi_resolution_stft=0, complex_stft=0)
    return tiny_method(weights=weights, **changes)


@pytest.mark.slow
def test_accumulation_gives_the_full_batch_gradient(lm, state):
    """Two micro-batches with uneven padding and missing texts add up to the whole."""
    batch = tiny_batch()
    whole, halves = (
        jax.jit(functools.partial(gather_gradients, well_conditioned(accumulate=n), EVERYTHING))(
            state, lm, batch
        )[0]
        for n in (1, 2)
    )
    for part in ("codec", "discriminator"):
        pair = (jax.tree.leaves(getattr(g, part)) for g in (whole, halves))
        for a, b in zip(*pair, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    for name, (total, count) in whole.losses.items():
        np.testing.assert_allclose(halves.losses[name], (total, count), rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(whole.text.states, halves.text.states, atol=1e-5)
    np.testing.assert_array_equal(whole.text.text_hash, halves.text.text_hash)
    np.testing.assert_array_equal(whole.histogram, halves.histogram)
    # Micro-batches divide by counts computed from the lengths alone: they must be those found.
    counts = batch_counts(tiny_method(), batch)
    for name, (_, count) in whole.losses.items():
        if not name.startswith("accuracy/"):
            assert float(count) == float(counts[name]), name


def test_a_non_finite_batch_changes_nothing_but_the_counters(full_step, state, lm):
    batch = tiny_batch()
    batch = batch.replace(wav=np.where(batch.wav_length[:, None] > 9000, np.nan, batch.wav))
    after, report = full_step(state, lm, batch)
    assert int(after.skipped) == int(after.bad_streak) == 1
    assert int(after.step) == 1
    kept = dict(step=0, skipped=0, bad_streak=0)
    jax.tree.map(np.testing.assert_array_equal, state.replace(**kept), after.replace(**kept))
    assert not np.isfinite(report["loss/mel"])
    good, report = full_step(after, lm, tiny_batch())
    assert int(good.skipped) == 1
    assert int(good.bad_streak) == 0
    assert np.isfinite(report["loss/mel"])


def test_padding_never_enters_a_loss(full_step, state, lm):
    """Garbage past the clips' ends changes no metric."""
    batch = tiny_batch()
    noise = np.random.default_rng(1).normal(size=batch.wav.shape).astype(np.float32)
    inside = np.arange(batch.wav.shape[1]) < batch.wav_length[:, None]
    dirty = batch.replace(wav=np.where(inside, batch.wav, noise), text_ids=batch.text_ids + 0)
    dirty.text_ids[0, :] = batch.text_ids[0, :]
    dirty.text_ids[1, 3:] = 7
    _, clean_report = full_step(state, lm, batch)
    _, dirty_report = full_step(state, lm, dirty)
    for name, value in clean_report.items():
        np.testing.assert_allclose(value, dirty_report[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_frozen_codec_stays_bit_identical_while_the_rest_learns(lm):
    schedule = dataclasses.replace(tiny_method().schedule, codec_start=0.5, ftp_start=0.5)
    method = tiny_method(schedule=schedule)
    state = jax.jit(lambda lm: init_state(method, lm, 0))(lm)
    step = functools.partial(train_step, method=method, phase=method.phase(0))
    after, report = jax.jit(step)(state, lm, tiny_batch())
    same = jax.tree.map(np.array_equal, state.params["codec"], after.params["codec"])
    assert jax.tree.all(same)
    assert report["grad_norm/encoder"] == 0
    for part in ("audio_embedding", "ftp_heads", "bridge"):
        moved = jax.tree.map(
            lambda a, b: not np.array_equal(a, b), state.params[part], after.params[part]
        )
        assert jax.tree.all(moved), part


def encoder_gradient(method, state, lm) -> float:
    """Norm of the gradient that the LM branch alone sends into the codec."""
    weights = dataclasses.replace(
        method.weights, mel=0, mel_final=0, multi_scale_mel=0, multi_resolution_stft=0,
        complex_stft=0, vq=0, adversarial=0, feature_matching=0, feature_matching_final=0,
    )  # fmt: skip
    method = dataclasses.replace(method, weights=weights)
    phase = Phase(codec=True, discriminator=False, lm=True)
    gradients, _ = jax.jit(lambda s: gather_gradients(method, phase, s, lm, tiny_batch()))(state)
    return float(sum(np.abs(g).sum() for g in jax.tree.leaves(gradients.codec["codec"])))


def test_detach_cuts_the_language_losses_off_the_codec(lm, state):
    modes = {
        mode: encoder_gradient(
            tiny_method(bridge=dataclasses.replace(tiny_method().bridge, mode=mode)), state, lm
        )
        for mode in ("ste", "detach")
    }
    assert modes["ste"] > 0
    assert modes["detach"] == 0


def test_the_gate_spares_the_codec_before_ftp_starts(lm, state):
    schedule = dataclasses.replace(tiny_method().schedule, ftp_start=0.9)
    assert encoder_gradient(tiny_method(schedule=schedule), state, lm) == 0


def test_without_the_lm_a_step_does_no_lm_work(lm, state):
    """Asserted on what the compiler counts: the LM's phase costs more than its matmuls alone."""
    method = tiny_method()

    def flops(phase):
        step = functools.partial(train_step, method=method, phase=phase)
        return jax.jit(step).lower(state, lm, tiny_batch()).cost_analysis()["flops"]

    c = method.lm.architecture
    per_token = (
        2
        * c.layers
        * (2 * c.width * c.head_dim * (c.heads + c.kv_heads) + 3 * c.width * c.ffn_width)
    )
    tokens = 4 * 31  # clips x (begin + frames)
    without, with_lm = flops(Phase(True, False, False)), flops(Phase(True, False, True))
    assert with_lm - without > 2 * per_token * tokens
    no_lm = dataclasses.replace(
        method,
        lm=None,
        groups=tuple(g for g in method.groups if g.name in ("encoder", "decoder")),
    )
    bare = jax.eval_shape(lambda: init_state(no_lm, None, 0))
    step = functools.partial(train_step, method=no_lm, phase=Phase(True, False, False))
    alone = jax.jit(step).lower(bare, None, tiny_batch()).cost_analysis()["flops"]
    rows = sum(x.size for n in ("audio_embedding", "ftp_heads") for x in [state.params[n]])
    rows += sum(x.size for x in jax.tree.leaves(state.params["bridge"]))
    assert without - alone < 40 * rows  # optimiser passes over the waiting rows, nothing more


def test_never_is_never():
    assert NEVER > 1


def test_terms_of_weight_zero_are_not_computed():
    """So nothing that goes wrong in one can block the update."""
    weights = dataclasses.replace(
        tiny_method().weights, complex_stft=0, mel=0, mel_final=0, vq=0, feature_matching=0,
        feature_matching_final=0,
    )  # fmt: skip
    method, batch = tiny_method(weights=weights), tiny_batch()
    output = CodecOutput(*5 * [jnp.full(4, jnp.nan)], frame_mask=None)
    losses = jax.eval_shape(lambda w: sound_losses(method, batch, w), batch.wav)
    assert not quantiser_losses(method, batch, output)
    assert set(losses) == {"multi_scale_mel", "multi_resolution_stft"}
    names = {term.name for term in method.terms}
    assert "adversarial" in names
    assert not names & {"complex_stft", "mel", "vq", "feature_matching"}


def test_a_loss_without_weight_and_a_weight_without_loss_are_refused():
    one = (jnp.zeros(()), jnp.ones(()))
    weights = tiny_method().weights
    every = {t.name: one for t in weights.terms() if t.part == "codec"}
    assert terms.check_losses(every, weights, ("codec",), 0) == every
    with pytest.raises(ValueError, match=r"without a weight: \['new'\]"):
        terms.check_losses(every | {"new": one}, weights, ("codec",), 0)
    del every["vq"]
    with pytest.raises(ValueError, match=r"without a loss: \['vq'\]"):
        terms.check_losses(every, weights, ("codec",), 0)


def test_r1_under_accumulation_works_on_micro_batches(lm, state):
    """The penalty is the mean over parts, and no array of it holds the whole batch."""
    method, batch = tiny_method(accumulate=2), tiny_batch()
    zeros = jax.tree.map(jnp.zeros_like, state.discriminator)
    run = jax.jit(lambda s: penalise(method, s, batch, zeros)).lower(state).compile()
    elsewhere, entry = run.as_text().split("\nENTRY ")  # where XLA:CPU has fast convolutions
    assert " convolution(" in entry
    assert " convolution(" not in elsewhere
    gradients, report = run(state)
    key = stream(jax.random.wrap_key_data(state.key), 0, "r1")
    total, expected = jnp.zeros(()), zeros
    one = jax.jit(jax.value_and_grad(functools.partial(penalty, method)))
    for index in range(2):
        part = jax.tree.map(lambda x, i=index: x[i::2], batch)
        value, gradient = one(state.discriminator, part, jax.random.fold_in(key, index))
        total += value / 2
        expected = jax.tree.map(lambda a, b: a + b / 2, expected, gradient)
    np.testing.assert_allclose(report["loss/r1"], total, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), gradients, expected
    )


@pytest.mark.slow
def test_parameters_that_overflow_are_not_accepted(lm):
    """Finite losses and gradients, but a step so long that what it leads to is not finite."""
    group = Group("all", ".*", "sgd", learning_rate=3e38, final=1.0, clip=1e30, weight_decay=1e3)
    method = tiny_method(lm=None, groups=(group,))
    state = jax.jit(lambda: init_state(method, None, 0))()
    step = functools.partial(train_step, method=method, phase=Phase(True, False, False))
    after, report = jax.jit(step)(state, None, tiny_batch())
    assert np.isfinite(report["loss/mel"])
    assert np.isfinite(report["grad_norm/all"])
    assert int(after.bad_streak) == 1
    jax.tree.map(np.testing.assert_array_equal, state.params, after.params)


def test_code_statistics_cover_every_level():
    even, single = jnp.ones(8), jnp.zeros(8).at[3].set(5.0)
    report = metrics.code_statistics(jnp.stack([even, single]))
    assert float(report["code_entropy/0"]) == pytest.approx(np.log(8), rel=1e-5)
    assert float(report["code_entropy/1"]) == pytest.approx(0.0, abs=1e-6)
    assert float(report["code_usage"]) == pytest.approx((1 + 1 / 8) / 2)


@pytest.mark.parametrize("batch", [60, 480])
def test_codes_are_counted_over_a_window_that_grows_with_the_codebook(batch):
    """What was said before weighs 1 / e after window * V codes, however they came in batches."""
    size, window = 120, 4.0
    start = jnp.zeros((2, size)).at[:, 3].set(window * size)
    counted = jnp.zeros((2, size)).at[0, 7].set(batch)  # nobody used the second level
    now = start
    for _ in range(int(window * size) // batch):
        now = metrics.count_lately(now, counted, window)
    assert float(now[0, 3]) == pytest.approx(window * size / np.e, rel=1e-5)
    np.testing.assert_array_equal(now[1], start[1])


@pytest.mark.parametrize(("init", "learns"), [("", True), ("mini", False)])
def test_fine_tuning_keeps_the_statistics_of_the_norm(init, learns):
    c = quickstart.get_config()
    c.init = init
    assert Method.from_config(read_config(c), None).train_norm == learns
    tuned = miniature.get_config().tuned
    tuned.init = "base"
    assert not Method.from_config(read_config(tuned), None).train_norm


def test_revival_counts_codes_where_the_norm_stands_still():
    codec = tiny_method().codec
    uniform = jnp.full(64, 1 / 64)
    stats = {"quantizer": {"level_0": {"usage": uniform}}}
    counted = codec.count_codes(stats, jnp.zeros((1, 64)).at[0, 5].set(9.0))
    usage = counted["quantizer"]["level_0"]["usage"]
    assert float(usage[5]) > float(usage[4])
    assert float(usage.sum()) == pytest.approx(1.0, rel=1e-5)
    unheard = codec.count_codes(stats, jnp.zeros((1, 64)))
    np.testing.assert_array_equal(unheard["quantizer"]["level_0"]["usage"], uniform)
