"""Rate against predictability: one codec at each number of its levels, under a language model.

    python -m llmcodec_jax.study.rates --data DIR --output rates.json NAME=CODEC [NAME=CODEC ...]

For q = 1 .. Q levels of every codec, or those of `--levels`: the bits a second that its codes take
as they are and under a small language model from scratch (`evaluate token_lm`'s protocol,
`--reads`), against mel, STOI and, if asked, WER of what those levels decode to. Give a family's
codecs by name (with and without the method, say) and they stand in one figure, OUTPUT.png; codecs
of one name (its seeds) are drawn as their mean. What is finished is kept and not done again.

No codec should have been trained on what it is tested on: `--held-out` names a folder of such
clips. Without it a tenth of DIR's is tested on, by hash of their names.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import logging
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import llmcodec_jax
from llmcodec_jax import audio
from llmcodec_jax.data.cache import keep_compilations
from llmcodec_jax.errors import UsageError, answer_errors
from llmcodec_jax.evaluation import reconstruction, token_lm
from llmcodec_jax.evaluation.protocol import TokenLMProtocol
from llmcodec_jax.evaluation.reports import write_json
from llmcodec_jax.evaluation.sampling import from_every_folder
from llmcodec_jax.evaluation.streams import Streams, first_levels, from_codec
from llmcodec_jax.ops import fields
from llmcodec_jax.pages import plots
from llmcodec_jax.study import stages
from llmcodec_jax.study.material import HELD_OUT

logger = logging.getLogger(__name__)
MEASURES = {"mel": "mel distance ↓", "stoi": "STOI ↑", "wer": "WER ↓"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What every point of every curve has in common."""

    protocol: TokenLMProtocol
    clips: int  # of the folder, for reconstruction
    additional: tuple[str, ...]  # measures beside the benchmark's six: ("wer",) or none


class FirstLevels:
    """A codec that speaks with its first `levels` codebooks alone."""

    def __init__(self, codec, levels: int):
        self.codec, self.levels = codec, levels
        self.sample_rate = codec.sample_rate

    def encode(self, wav, sample_rate=None):
        """As the codec's, with so many levels."""
        return self.codec.encode(wav, sample_rate, levels=self.levels)

    def decode(self, codes):
        """As the codec's."""
        return self.codec.decode(codes)


def measure(codec, tested: Path, folder: Path, settings: Settings, levels: int, coded) -> dict:
    """One point: bits a second, what an LM makes of them, and the sound. Kept in `folder`.

    tested: clips to reconstruct. coded: () -> the codec's Streams with all levels.
    """
    names = {path.relative_to(tested).as_posix(): path for path in audio.find(tested)}
    chosen = from_every_folder(list(names), settings.clips)
    clips = [reconstruction.Clip(name, names[name], None) for name in chosen]
    sound = reconstruction.evaluate(
        clips,
        folder / f"reconstruction-{levels}.json",
        f"{codec.digest}|{levels}",
        reconstruction.codec_coder(FirstLevels(codec, levels) if codec.levels > 1 else codec),
        settings.additional,
    )
    path = folder / f"token_lm-{levels}.json"
    if not path.exists():
        tokens, _ = first_levels(coded(), levels, None)
        report = token_lm.report(tokens, settings.protocol, None, sound["mean"])
        write_json(path, report)
    report = json.loads(path.read_text())
    small = report["small_lm"]
    return {
        "levels": levels,
        "bits_per_second": report["stream"]["bits_per_second"],
        "lm_bits_per_second": small["bits_per_second"]["mean"],
        "lm_bits_deviation": small["bits_per_second"]["deviation"],
        "nats_per_token": small["nats_per_token"]["mean"],
        "unigram_entropy": report["unigram"]["entropy"],
        "mel": sound["mean"]["mel"],
        "stoi": sound["mean"]["stoi"],
        "wer": sound.get("hearing", {}).get("pooled", {}).get("wer"),
    }


def code(codec, data: Path, held_out: Path | None) -> Streams:
    """Tokens of all clips below both folders; those of `held_out` are tested on alone."""
    streams, _ = from_codec(codec, data)
    if held_out is None:
        return streams
    apart = {f"{HELD_OUT}{n}": c for n, c in from_codec(codec, held_out)[0].clips.items()}
    return dataclasses.replace(streams, clips=streams.clips | apart, held_out=frozenset(apart))


def curve(
    path: str,
    data: Path,
    held_out: Path | None,
    folder: Path,
    settings: Settings,
    wanted: Sequence[int] = (),
) -> list[dict]:
    """A codec's points, one for each number of levels, or for each `wanted` one that it has."""
    codec = llmcodec_jax.load_codec(path)
    inputs = {"codec": codec.digest, "data": str(data), "held_out": str(held_out or "")}
    # What is kept was measured in the same way.
    stages.check_inputs(
        folder, inputs | dataclasses.asdict(settings), {"held_out": ""} | fields.defaults(Settings)
    )

    @functools.cache
    def coded() -> Streams:
        return code(codec, data, held_out)

    every = range(1, codec.levels + 1)
    points = []
    for levels in sorted({*wanted} & {*every}) or every:
        logger.info("%s: %d of %d levels", path, levels, codec.levels)
        points.append(measure(codec, held_out or data, folder, settings, levels, coded))
    return points


def mean_of(curves: list[list[dict]]) -> list[dict]:
    """Curves of a codec's seeds -> their mean, point by point."""

    def mean(values: Sequence) -> float | None:
        return None if None in values else statistics.fmean(values)

    points = zip(*curves, strict=True)
    return [
        {name: mean([p[name] for p in same]) for name in same[0]} | {"levels": same[0]["levels"]}
        for same in points
    ]


def figure(curves: dict[str, list[dict]], seeds: dict[str, list[list[dict]]]) -> Figure:
    """Bits a second under the LM (whole lines) and as they are (dashed), against the sound.

    curves: name -> the codec's curve. seeds: name -> those that it is the mean of, drawn faintly.
    """
    drawn = [m for m in MEASURES if any(p[m] is not None for c in curves.values() for p in c)]
    made, axes = plt.subplots(
        1, len(drawn), figsize=(5.5 * len(drawn), 4.2), squeeze=False, layout="tight"
    )
    for axis, measure in zip(axes[0], drawn, strict=True):

        def draw(points: list[dict], bits: str, style: str, axis=axis, measure=measure, **options):
            value = [np.nan if p[measure] is None else p[measure] for p in points]
            axis.plot([p[bits] for p in points], value, style, **options)

        for index, (name, points) in enumerate(curves.items()):
            colour, told = f"C{index % 10}", plots.literal(name)
            draw(points, "lm_bits_per_second", "o-", color=colour, label=f"{told}, under an LM")
            draw(points, "bits_per_second", "s--", color=colour, label=told, alpha=0.5)
            for one in seeds[name] if len(seeds[name]) > 1 else ():
                draw(one, "lm_bits_per_second", ".", color=colour, alpha=0.4)
        axis.set(xlabel="bits per second", ylabel=MEASURES[measure], xscale="log")
        axis.grid(alpha=0.3, which="both")
    axes[0, -1].legend(fontsize=8)
    return made


def parser() -> argparse.ArgumentParser:
    """The command's options; the protocol's are those of `evaluate token_lm`."""
    made = argparse.ArgumentParser(
        prog="python -m llmcodec_jax.study.rates",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("codecs", nargs="+", metavar="NAME=CODEC", help="curves of the figure")
    made.add_argument("--data", required=True, help="folder of clips")
    made.add_argument("--held-out", help="folder of clips that no codec was trained on")
    made.add_argument("--levels", type=int, nargs="+", default=[], help="numbers of levels")
    made.add_argument("--output", default="rates.json", help="OUTPUT.png and work lie beside it")
    made.add_argument("--clips", type=int, default=48, help="for reconstruction")
    made.add_argument("--additional", nargs="*", default=[], choices=["wer"], help="slow measures")
    for field in dataclasses.fields(TokenLMProtocol):
        option = "--" + field.name.replace("_", "-")
        if field.name == "seeds":
            made.add_argument(option, type=int, default=len(field.default), help="how many")
        else:
            made.add_argument(
                option, type=type(field.default), default=field.default, help="protocol"
            )
    return made


@answer_errors
def main(argv: list[str] | None = None) -> int:
    """Measures what is missing, writes OUTPUT and the figure -> exit status."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    keep_compilations(min_seconds=0.1)
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(TokenLMProtocol)}
    protocol = TokenLMProtocol(**given | {"seeds": tuple(range(args.seeds)), "probes": 0})
    settings = Settings(protocol, args.clips, tuple(args.additional))
    output = Path(args.output)
    held_out = Path(args.held_out) if args.held_out else None
    seeds: dict[str, list[list[dict]]] = {}
    for entry in args.codecs:
        name, _, path = entry.partition("=")
        if not path:
            raise UsageError(f"{entry}: expected NAME=CODEC")
        drawn = seeds.setdefault(name, [])
        folder = output.with_suffix("") / (f"{name}-{len(drawn)}" if drawn else name)
        drawn.append(curve(path, Path(args.data), held_out, folder, settings, args.levels))
    curves = {name: mean_of(drawn) for name, drawn in seeds.items()}
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, {"protocol": dataclasses.asdict(protocol), "curves": curves, "seeds": seeds})
    figure(curves, seeds).savefig(output.with_suffix(".png"), dpi=110)
    for name, points in curves.items():
        for point in points:
            print(
                f"{name} {point['levels']} levels: {point['bits_per_second']:.0f} bits/s, "
                f"{point['lm_bits_per_second']:.0f} under an LM, mel {point['mel']:.3f}, "
                f"stoi {point['stoi']:.3f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
