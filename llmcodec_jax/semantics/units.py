"""Discrete units: k-means over one layer of a speech encoder (HuBERT's, as in GSLM and SpeechGPT).

    python -m llmcodec_jax.semantics.units --encoder hf:facebook/hubert-base-ls960 --layer 9 \\
        --clusters 500 --data DIR --output units/

The folder opens as something that encodes like a codec and cannot decode:

    units = load_units("units/")
    codes = units.encode(wav, sample_rate)       # int32 [T], 50 a second

`evaluate token_lm --codec units/` and `evaluate salmon --codec units/` take it as a rival.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from llmcodec_jax import audio
from llmcodec_jax.codec.layout import LayoutError
from llmcodec_jax.errors import UserError, answer_errors
from llmcodec_jax.ops import files
from llmcodec_jax.semantics import published
from llmcodec_jax.semantics.encoder import SpeechEncoder

logger = logging.getLogger(__name__)

CONFIG_NAME, CENTRES_NAME = "units.json", "units.npy"
BUCKET_SECONDS = (2.0, 5.0, 10.0, 30.0)
"""Padded lengths; longer audio is taken in consecutive pieces of the last."""


class Features:
    """One layer's features of any audio."""

    def __init__(self, encoder: SpeechEncoder, variables: dict, layer: int):
        """`layer` counts like `hidden_states`: 0 is the transformer's input, L its output.

        Raises ValueError for a layer that the encoder does not have.
        """
        if not 0 <= layer <= encoder.layers:
            raise ValueError(f"layer {layer}: this encoder has 0 to {encoder.layers}")
        self.encoder, self.layer = encoder, layer
        self._variables = jax.device_put(variables)
        self._buckets = [round(s * encoder.sample_rate) for s in BUCKET_SECONDS]
        self._apply = jax.jit(lambda v, wav, length: encoder.apply(v, wav, length)[0][layer])

    def __call__(self, wav: np.ndarray, sample_rate: int) -> np.ndarray:
        """wav float [N] or [N, channels] at `sample_rate` Hz -> float32 [T, D].

        Raises AudioError for audio that is shorter than one frame or not finite.
        """
        wav = np.asarray(wav, np.float32)
        wav = wav.mean(axis=1) if wav.ndim == 2 else wav
        wav = audio.resample(wav, sample_rate, self.encoder.sample_rate)
        if not np.isfinite(wav).all():
            raise audio.AudioError("audio holds NaN or infinite samples")
        if self.encoder.frames(len(wav)) < 1:
            raise audio.AudioError(f"{len(wav)} samples are shorter than one frame of the encoder")
        pieces = [wav[i : i + self._buckets[-1]] for i in range(0, len(wav), self._buckets[-1])]
        # A last piece shorter than a frame has nothing to say.
        kept = [piece for piece in pieces if self.encoder.frames(len(piece)) >= 1]
        return np.concatenate([self._piece(piece) for piece in kept])

    def _piece(self, wav: np.ndarray) -> np.ndarray:
        size = next(bucket for bucket in self._buckets if len(wav) <= bucket)
        padded = np.pad(wav, (0, size - len(wav)))[None]
        features = self._apply(self._variables, padded, np.array([len(wav)], np.int32))
        return np.asarray(features[0, : self.encoder.frames(len(wav))])


class Units:
    """A speech encoder's layer and the centres that turn its features into codes."""

    levels = 1

    def __init__(self, features: Features, centres: np.ndarray):
        """`centres` float32 [K, D]."""
        self.features, self.centres = features, np.asarray(centres, np.float32)
        self.sample_rate = features.encoder.sample_rate
        self.frame_rate = features.encoder.frame_rate
        self.hop = features.encoder.hop
        self.codebook_size = len(self.centres)

    def encode(self, wav, sample_rate: int | None = None):
        """Audio [N] (or a list of clips) -> int32 [T] (or a list): the nearest centre a frame."""
        if isinstance(wav, list | tuple):
            return [self.encode(clip, sample_rate) for clip in wav]
        return nearest(self.features(wav, sample_rate or self.sample_rate), self.centres)

    def decode(self, codes):
        """Units carry no sound. Raises ValueError saying so."""
        raise ValueError("units of a speech encoder cannot be decoded: they carry no sound")


def nearest(features: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """features [T, D], centres [K, D] -> int32 [T], the closest centre by Euclidean distance."""
    distance = np.sum(np.square(centres), axis=1) - 2 * features @ centres.T
    return np.argmin(distance, axis=1).astype(np.int32)


def fit(features: Iterable[np.ndarray], clusters: int, seed: int = 0) -> np.ndarray:
    """Feature arrays [T, D] -> centres float32 [clusters, D] by mini-batch k-means.

    Raises UserError where there are fewer frames than clusters.
    """
    from sklearn.cluster import MiniBatchKMeans

    frames = np.concatenate(list(features))
    if len(frames) < clusters:
        raise UserError(f"{len(frames)} frames are too few for {clusters} clusters")
    kmeans = MiniBatchKMeans(
        clusters, init="k-means++", batch_size=10_000, n_init=5, max_no_improvement=100,
        reassignment_ratio=0.0, random_state=seed,
    )  # fmt: skip
    return kmeans.fit(frames).cluster_centers_.astype(np.float32)


def save_units(folder: Path, encoder: str, layer: int, centres: np.ndarray) -> None:
    """Writes `units.json` (which encoder and layer) and `units.npy` (the centres)."""
    folder.mkdir(parents=True, exist_ok=True)
    with files.replacing(folder / CENTRES_NAME) as partial, open(partial, "wb") as file:
        np.save(file, centres)
    about = {"format": 1, "encoder": encoder, "layer": layer, "clusters": len(centres)}
    with files.replacing(folder / CONFIG_NAME) as partial:
        partial.write_text(json.dumps(about, indent=2) + "\n")


def load_units(folder: str | Path) -> Units:
    """A folder that `save_units` wrote -> Units. Raises FileNotFoundError or LayoutError."""
    folder = Path(folder)
    try:
        about = json.loads((folder / CONFIG_NAME).read_text())
        encoder, layer = str(about["encoder"]), int(about["layer"])
        centres = np.load(folder / CENTRES_NAME, allow_pickle=False)
    except (ValueError, KeyError, TypeError) as error:
        raise LayoutError(f"{folder}: not a readable folder of units ({error})") from error
    features = Features(*published.load(encoder), layer)
    width = features.encoder.width
    if centres.ndim != 2 or centres.shape[1] != width or not np.isfinite(centres).all():
        raise LayoutError(f"{folder / CENTRES_NAME}: {centres.shape}, not finite [K, {width}]")
    return Units(features, centres)


def folder_features(features: Features, folder: Path) -> Iterator[np.ndarray]:
    """Features of every clip below a folder; unreadable ones are named and left out."""
    for path in tqdm(audio.find(folder), "features", unit="clip"):
        try:
            wav, rate = audio.read(path)
            yield features(wav, rate)
        except ValueError as error:
            logger.warning("left out: %s", error)


@answer_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m llmcodec_jax.semantics.units",
        description="Learns discrete units of a speech encoder's layer by k-means.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--encoder", required=True, help="HuBERT or wav2vec 2.0: folder or hf:...")
    parser.add_argument("--layer", type=int, default=9, help="0 is the input, L the last output")
    parser.add_argument("--clusters", type=int, default=500)
    parser.add_argument("--data", type=Path, required=True, help="folder of audio to learn from")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    encoder, variables = published.load(args.encoder)
    if not 0 <= args.layer <= encoder.layers:
        parser.error(f"--layer {args.layer}: this encoder has 0 to {encoder.layers}")
    features = folder_features(Features(encoder, variables, args.layer), args.data)
    centres = fit(features, args.clusters, args.seed)
    save_units(args.output, args.encoder, args.layer, centres)
    print(f"{args.output}: {len(centres)} units of layer {args.layer}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
