"""Evaluation: reconstruction, token predictability, coherence, consistency, and one page of it all.

python -m llmcodec_jax.evaluate reconstruction --reference DIR --estimate DIR
python -m llmcodec_jax.evaluate --help
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from llmcodec_jax.audio import AudioError
from llmcodec_jax.evaluation.reconstruction import EvaluationError


def reconstruction(args: argparse.Namespace) -> None:
    """The six Codec-SUPERB metrics of a folder of estimates, or of a codec."""
    from llmcodec_jax.evaluation import reconstruction as room

    if (args.estimate is None) == (args.codec is None):
        raise EvaluationError("give either --estimate DIR or --codec CODEC")
    code, source = None, str(Path(args.estimate or args.codec).resolve())
    if args.codec is not None:
        import llmcodec_jax

        code = room.codec_coder(llmcodec_jax.load_codec(args.codec))
    report = room.evaluate(
        room.match_folders(args.reference, args.estimate),
        Path(args.output),
        source,
        code=code,
        optional=tuple(args.additional),
        workers=args.workers,
        keep=Path(args.keep) if args.keep else None,
    )
    _print_means(report)


def _print_means(report: dict) -> None:
    """The report's means on the terminal, with intervals and what is missing."""
    for title, part in (("Codec-SUPERB", report), ("additional", report["additional"])):
        print(title)
        for name, value in part["mean"].items():
            interval = part["interval"].get(name)
            shown = "undefined on every clip" if value is None else f"{value:.4f}"
            print(f"  {name:10s} {shown}" + ("" if interval is None else f" ± {interval:.4f}"))
    for name, reason in report["absent"].items():
        print(f"  {name:10s} absent: {reason}")
    for name, count in report["undefined"].items():
        print(f"  {name} is undefined on {count} of {len(report['items'])} clips (left out)")


def _reconstruction_parser(commands) -> None:
    parser = commands.add_parser(
        "reconstruction",
        help="Codec-SUPERB's mel, stft, waveform, pesq, stoi, f0corr",
        description="Scores estimates against references of the same names, at their own rates. "
        "Interrupted runs carry on where they stopped.",
    )
    parser.add_argument(
        "--reference", required=True, help="folder of clips; sub-folders: categories"
    )
    parser.add_argument("--estimate", help="folder of coded clips under the same names")
    parser.add_argument(
        "--codec", help="codec to run instead: run folder, converted folder, weights"
    )
    parser.add_argument("--output", default="report.json", help="default: report.json")
    parser.add_argument("--workers", type=int, help="scoring processes (default: one a core)")
    parser.add_argument("--keep", help="folder to keep the codec's reconstructions in")
    parser.add_argument(
        "--additional",
        nargs="*",
        default=[],
        choices=["dnsmos", "wer"],
        help="measures beside si_sdr and mcd that need optional packages",
    )
    parser.set_defaults(run=reconstruction)


def main(argv: list[str] | None = None) -> int:
    """Runs one sub-command; returns the process's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m llmcodec_jax.evaluate", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_reconstruction_parser,):
        add(commands)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        args.run(args)
    except (AudioError, EvaluationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
