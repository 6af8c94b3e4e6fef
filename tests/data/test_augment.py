"""Changes of training clips: each does what it says, alone, and only where it is asked for."""

import dataclasses

import numpy as np
import pytest

from llmcodec_jax.data import augment
from llmcodec_jax.data.augment import Augment
from llmcodec_jax.data.batches import Batches
from llmcodec_jax.data.examples import ExampleMaker
from llmcodec_jax.data.sources import open_mixture
from llmcodec_jax.errors import UsageError
from tests.tiny import RATE, babble


def none(_rng):
    return None


def tone(hertz: float, seconds: float = 1.0) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)


def peak_of(wav: np.ndarray) -> float:
    return np.argmax(np.abs(np.fft.rfft(wav))) * RATE / len(wav)


def test_pitch_moves_a_tone_and_keeps_its_length():
    moved = augment.shift_pitch(tone(400.0), RATE, 1.25)
    assert moved.shape == (RATE,)
    assert abs(peak_of(moved) - 500.0) < 5


def test_formants_move_and_the_melody_stays():
    """A buzz of 150 Hz through one resonance: harmonics stay where they are, the hump moves."""
    spectrum = np.zeros(RATE // 2 + 1)
    harmonics = np.arange(150, 7000, 150)
    spectrum[harmonics] = np.exp(-(((harmonics - 1500) / 500.0) ** 2)) + 1e-3
    buzz = np.fft.irfft(spectrum * np.exp(1j * np.arange(len(spectrum)) ** 2 * 1e-3), RATE)
    buzz = (0.3 * buzz / np.abs(buzz).max()).astype(np.float32)
    moved = np.abs(np.fft.rfft(augment.shift_formants(buzz, RATE, 1.2)))
    near = np.arange(900, 3000, 150)
    assert moved[near].sum() > 20 * moved[near + 75].sum()  # still a buzz of 150 Hz
    centre = np.sum(near * moved[near]) / np.sum(moved[near])
    before = np.abs(np.fft.rfft(buzz))[near]
    assert 1.1 < centre / (np.sum(near * before) / np.sum(before)) < 1.3


def test_equaliser_gains_are_those_asked_for():
    flat = augment.equalise(tone(1000.0), RATE, np.full(8, 6.0))
    np.testing.assert_allclose(np.abs(flat).max(), 0.3 * 10 ** (6 / 20), rtol=1e-3)


def test_a_room_keeps_the_direct_sound_and_decays():
    click = np.zeros(RATE, np.float32)
    click[0] = 1.0
    heard = augment.reverberate(click, RATE, 0.3, np.random.default_rng(0))
    power = [np.sum(heard[round(a * RATE) : round((a + 0.05) * RATE)] ** 2) for a in (0.001, 0.2)]
    assert heard[0] == pytest.approx(1.0, abs=1e-6)
    assert 10 * np.log10(power[0] / power[1]) == pytest.approx(60 * 0.2 / 0.3, abs=6)


def test_mixing_is_at_the_level_asked_for():
    wav = babble(1.0, 0)
    beneath = augment.mix(wav, tone(700.0, 0.3), 20.0) - wav
    assert 10 * np.log10(np.mean(wav**2) / np.mean(beneath**2)) == pytest.approx(20.0, abs=0.5)


def test_a_telephone_is_narrow():
    low, middle = (np.std(augment.telephone(tone(hertz), RATE)) for hertz in (80.0, 1000.0))
    assert low < 0.02 * middle


CHANGES = [field.name for field in dataclasses.fields(Augment) if "_" not in field.name]


@pytest.mark.parametrize("field", CHANGES)
def test_each_change_alone_is_finite_and_reproducible(field):
    wav, config = babble(1.0, 3), Augment(**{field: 1.0})
    assert config.any()
    assert not Augment().any()
    made = [config.change(wav, RATE, np.random.default_rng(1), none, none) for _ in range(2)]
    np.testing.assert_array_equal(*made)
    assert made[0].dtype == np.float32
    assert np.isfinite(made[0]).all()
    assert np.abs(made[0]).max() <= 1.0
    changed = not np.array_equal(made[0], wav)
    assert changed == (field not in ("speed", "overlap"))  # drawn before, and without another


def test_impossible_options_are_refused_by_name():
    with pytest.raises(UsageError, match=r"data.augment.speed is a share"):
        Augment(speed=1.5)
    with pytest.raises(UsageError, match=r"data.augment.pitch_range"):
        Augment(pitch_range=(1.2, 0.8))
    with pytest.raises(UsageError, match=r"data.augment.formants_range must be above zero"):
        Augment(formants_range=(0.0, 1.2))


def test_batches_change_clips_by_their_keys_and_only_if_asked(speech):
    parts = open_mixture(f"librispeech:{speech}")
    maker = ExampleMaker(sample_rate=RATE, clip_samples=RATE // 2, hop=320)
    everything = Augment(**dict.fromkeys(CHANGES, 0.5))

    def batch(maker, number):
        return Batches(parts, maker, batch_size=4, seed=3)[number]["fields"]

    plain, changed = batch(maker, 2), batch(dataclasses.replace(maker, augment=everything), 2)
    same = batch(dataclasses.replace(maker, augment=Augment()), 2)
    np.testing.assert_array_equal(plain["wav"], same["wav"])
    np.testing.assert_array_equal(plain["example_id"], changed["example_id"])
    assert not np.array_equal(plain["wav"], changed["wav"])
    again = batch(dataclasses.replace(maker, augment=everything), 2)
    np.testing.assert_array_equal(changed["wav"], again["wav"])


def test_faster_speech_holds_more_words_a_second(speech):
    """Played at 1.25 a recording is shorter by that, and its transcript stays whole."""
    [part] = open_mixture(f"librispeech:{speech}")
    record = part.source.record(0)
    maker = ExampleMaker(sample_rate=RATE, clip_samples=4 * RATE, hop=320)
    fast = dataclasses.replace(maker, augment=Augment(speed=1.0, speed_range=(1.25, 1.25)))
    lengths = [int(m.make(record, np.random.default_rng(0), 0, "x")["wav_length"])
               for m in (maker, fast)]  # fmt: skip
    assert lengths[0] / lengths[1] == pytest.approx(1.25, abs=1e-3)
