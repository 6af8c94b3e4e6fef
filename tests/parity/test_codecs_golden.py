"""Codecs against their published code at seeded weights: codes, audio, gradients, layout.

`make/NAME_golden.py` made each file of `data/` by running the published code; no weights in them.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmcodec_jax.codec import layout
from llmcodec_jax.codec.conv import (
    bigcodec,
    dac,
    encodec,
    mimi,
    speechtokenizer,
    unicodec,
    wavtokenizer,
)
from llmcodec_jax.types import DOMAINS
from tests.parity import seeded

DATA = Path(__file__).parent / "data"
FAMILIES = {
    "bigcodec": bigcodec,
    "dac": dac,
    "encodec": encodec,
    "mimi": mimi,
    "speechtokenizer": speechtokenizer,
    "unicodec": unicodec,
    "wavtokenizer": wavtokenizer,
}


class Golden:
    """One golden file, and our module with the weights it was made with."""

    def __init__(self, name):
        self.family = FAMILIES[name.split("_")[0]]
        with np.load(DATA / f"{name}.npz") as file:
            self.meta = json.loads(str(file["meta"]))
            self.arrays = {key: file[key] for key in file.files if key != "meta"}
        self.tensors = {
            name: seeded.codec_tensor(name, shape) for name, shape in self.meta["shapes"].items()
        }
        for name, values in self.meta.get("kept", {}).items():
            self.tensors[name] = np.array(values, np.float32)
        config = self.meta["config"]
        shapes = layout.shapes_of(layout.modern_names(self.tensors))
        assert self.family.recognises(shapes, config)
        self.codec, self.variables = self.family.from_published(self.tensors, config)
        wav = seeded.codec_wav(self.meta["seconds"], self.meta["rate"])
        self.wav = jnp.asarray(wav[:, : wav.shape[1] // self.codec.hop * self.codec.hop])

    @functools.cached_property
    def output(self):
        return jax.jit(functools.partial(self.codec.apply, method="encode"))(
            self.variables, self.wav
        )


@pytest.fixture(scope="module", params=FAMILIES)
def golden(request):
    return Golden(request.param)


def test_codes_and_latents_are_the_published_ones(golden):
    np.testing.assert_allclose(golden.output.latent[0], golden.arrays["latent"], atol=1e-4)
    theirs = golden.arrays["codes"]
    ours = np.asarray(golden.output.codes[0]).reshape(theirs.shape)
    assert len(np.unique(theirs)) > 16
    assert (ours == theirs).all(axis=-1).mean() >= 0.999


def test_the_same_codes_sound_the_same(golden):
    decode = jax.jit(functools.partial(golden.codec.apply, method="decode_codes"))
    wav = decode(golden.variables, jnp.asarray(golden.arrays["codes"], jnp.int32)[None])
    assert np.abs(golden.arrays["audio"]).max() > 0.01
    published = golden.arrays["audio"][0]
    np.testing.assert_allclose(wav[0, : len(published)], published, atol=1e-4)


def test_gradients_are_the_published_ones(golden):
    """Of the mean squared error of the reconstruction, by the published parameters' names.

    And of the quantiser's loss, where the published code returns one; of SpeechTokenizer's
    semantic features, their mean square.
    """
    quantiser = float("vq_loss" in golden.arrays)

    def loss(params):
        variables = {**golden.variables, "params": params}
        output, wav = golden.codec.apply(variables, golden.wav, method="reconstruct")
        total = jnp.mean(jnp.square(wav - golden.wav)) + quantiser * output.vq_loss.sum()
        if "semantic" in golden.arrays:
            semantic = golden.codec.apply(variables, output, method="semantic")
            total = total + jnp.mean(jnp.square(semantic))
        return total

    gradients = jax.jit(jax.grad(loss))(golden.variables["params"])
    published = golden.family.to_published(golden.codec, {**golden.variables, "params": gradients})
    published = layout.modern_names(published)
    norms = layout.modern_names(golden.meta["gradients"])
    assert len(norms) > 10
    largest = max(norms.values())
    for name, norm in norms.items():
        assert np.linalg.norm(published[name]) == pytest.approx(norm, 0.01, 1e-6 * largest), name


def test_import_and_export_keep_every_bit(golden):
    published = golden.family.to_published(golden.codec, golden.variables)
    published = layout.modern_names(published)
    assert set(published) == set(layout.modern_names(golden.tensors))
    unused = getattr(golden.family, "unused", lambda codec: {})(golden.codec)
    for name, value in layout.modern_names(golden.tensors).items():
        if name in golden.meta.get("kept", {}):  # computed here; import has compared them
            continue
        if name in unused:
            assert not published[name].any()
            continue
        assert value.tobytes() == published[name].tobytes(), name


@pytest.mark.parametrize(("published", "domain"), [("0", "speech"), ("1", "music"), ("2", "audio")])
def test_unicodec_keeps_to_the_domains_codes(published, domain):
    golden = Golden("unicodec")
    codec, index = golden.codec, jnp.array([DOMAINS.index(domain)])
    encode = jax.jit(lambda v, w: codec.apply(v, w, domain=index, method="encode").codes)
    codes = encode(golden.variables, golden.wav)[0]
    np.testing.assert_array_equal(codes, golden.meta["by_domain"][published])
    low, high = codec.domain_bounds()[index[0]]
    assert low <= codes.min() <= codes.max() < high
