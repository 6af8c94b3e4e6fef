"""What a published code computed at seeded weights, and our module with the same weights."""

import functools
import importlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmcodec_jax.codec import layout
from tests.parity import seeded

DATA = Path(__file__).parent / "data"
NAMES = "bigcodec dac encodec mimi speechtokenizer unicodec wavtokenizer".split()
GOLDENS = (*NAMES, "encodec_48khz")
FAMILIES: dict[str, Any] = {
    name: importlib.import_module(f"llmcodec_jax.codec.conv.{name}") for name in NAMES
}


def read(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """A file that `make/oracle.py` wrote -> (its description, its arrays)."""
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files if key != "meta"}
        return json.loads(str(file["meta"])), arrays


def weights(meta: dict) -> dict[str, np.ndarray]:
    """The published tensors that a file was made with."""
    tensors = {name: seeded.codec_tensor(name, shape) for name, shape in meta["shapes"].items()}
    kept = meta.get("kept", {}).items()
    return tensors | {name: np.array(values, np.float32) for name, values in kept}


class Golden:
    """One golden file, and our module with the weights it was made with."""

    def __init__(self, path: Path):
        """`path`: FAMILY.npz or FAMILY_WHICH.npz, as `make/NAME_golden.py` writes it."""
        self.family = FAMILIES[path.stem.partition("_")[0]]
        self.meta, self.arrays = read(path)
        self.tensors = weights(self.meta)
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

    def same_frames(self) -> np.ndarray:
        """Which frames have the published codes in every level, bool [T]."""
        theirs = self.arrays["codes"]
        ours = np.asarray(self.output.codes[0]).reshape(theirs.shape)
        return (ours == theirs).all(axis=-1)

    def sound_error(self) -> float:
        """The largest difference of the audio of the published codes."""
        decode = jax.jit(functools.partial(self.codec.apply, method="decode_codes"))
        codes = jnp.asarray(self.arrays["codes"], jnp.int32)[None]
        published = self.arrays["audio"][0]
        wav = np.asarray(decode(self.variables, codes))[0, : len(published)]
        return float(np.abs(wav - published).max())

    def gradient_norms(self) -> dict[str, tuple[float, float]]:
        """Published parameter -> (our gradient's norm, theirs).

        Of the mean squared error of the reconstruction, and of the quantiser's loss where the
        published code returns one; of SpeechTokenizer's semantic features, their mean square.
        """
        quantiser = float("vq_loss" in self.arrays)

        def loss(params):
            variables = {**self.variables, "params": params}
            output, wav = self.codec.apply(variables, self.wav, method="reconstruct")
            total = jnp.mean(jnp.square(wav - self.wav)) + quantiser * output.vq_loss.sum()
            if "semantic" in self.arrays:
                semantic = self.codec.apply(variables, output, method="semantic")
                total = total + jnp.mean(jnp.square(semantic))
            return total

        gradients = jax.jit(jax.grad(loss))(self.variables["params"])
        ours = self.family.to_published(self.codec, {**self.variables, "params": gradients})
        ours, theirs = layout.modern_names(ours), layout.modern_names(self.meta["gradients"])
        return {name: (float(np.linalg.norm(ours[name])), theirs[name]) for name in theirs}
