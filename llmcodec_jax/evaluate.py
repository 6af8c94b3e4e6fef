"""Evaluation: reconstruction, token predictability, coherence, consistency, and one page of it all.

python -m llmcodec_jax.evaluate reconstruction --reference DIR --estimate DIR
python -m llmcodec_jax.evaluate --help
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from pathlib import Path

from llmcodec_jax.errors import UsageError, answer_errors
from llmcodec_jax.evaluation.reports import EvaluationError, print_failures


def score_reconstruction(args: argparse.Namespace) -> int:
    """The six Codec-SUPERB metrics of a folder of estimates, or of a codec."""
    from llmcodec_jax.evaluation import additional, reconstruction

    if (args.estimate is None) == (args.codec is None):
        raise UsageError("give either --estimate DIR or --codec CODEC")
    optional = additional.requested(args.additional)
    code, source = None, ""
    if args.codec is not None:
        codec = _codec(args.codec)
        if not hasattr(codec, "digest"):
            raise UsageError(
                f"--codec {args.codec}: units carry no sound; nothing is reconstructed"
            )
        code, source = (
            reconstruction.codec_coder(codec),
            codec.digest,
        )
    report = reconstruction.evaluate(
        reconstruction.match_folders(args.reference, args.estimate),
        Path(args.output),
        source,
        code=code,
        optional=optional,
        workers=args.workers,
        keep=Path(args.keep) if args.keep else None,
    )
    _print_means(report)
    return print_failures(report["failed"], args.output)


def _print_means(report: dict) -> None:
    """The report's means on the terminal, with intervals and what is missing."""
    for title, part in (("Codec-SUPERB", report), ("additional", report["additional"])):
        print(title)
        for name, value in part["mean"].items():
            interval = part["interval"].get(name)
            shown = "undefined on every clip" if value is None else f"{value:.4f}"
            print(f"  {name:15s} {shown}" + ("" if interval is None else f" ± {interval:.4f}"))
    if "hearing" in report:
        hearing = report["hearing"]
        against = ", ".join(f"{count} by {kind}" for kind, count in hearing["against"].items())
        print(f"{hearing['recogniser']} over {hearing['words']} words ({against})")
        for name, value in hearing["pooled"].items():
            print(f"  {name:15s} {value:.4f} pooled")
    for name, reason in report["absent"].items():
        print(f"  {name:15s} absent: {reason}")
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
        nargs="+",
        default=[],
        metavar="NAME",
        help="measures beside si_sdr and mcd that need optional packages: wer, speaker, dnsmos, "
        "utmos (docs/evaluation.md)",
    )
    parser.set_defaults(run=score_reconstruction)


def measure_tokens(args: argparse.Namespace) -> int:
    """Predictability of a codec's tokens, with what could have bought it beside it."""
    from llmcodec_jax.evaluation import streams, token_lm
    from llmcodec_jax.evaluation.protocol import TokenLMProtocol
    from llmcodec_jax.evaluation.reconstruction import codec_sample
    from llmcodec_jax.evaluation.reports import write_json

    fields = {f.name: getattr(args, f.name) for f in dataclasses.fields(TokenLMProtocol)}
    protocol = TokenLMProtocol(**fields | {"seeds": tuple(range(args.seeds))})
    metrics = None
    if args.reconstruction:
        metrics = json.loads(Path(args.reconstruction).read_text())["mean"]
    encode_start, failed = None, {}
    if args.codec.startswith("tokens:"):
        tokens = streams.from_table(args.codec.removeprefix("tokens:"))
    elif any(Path(args.codec).glob("**/*.npz")) and not args.data:
        tokens = streams.from_token_files(Path(args.codec), args.codebook_size)
    else:
        if args.data is None:
            raise UsageError("--data: a codec needs a folder of clips to encode")
        codec = _codec(args.codec)
        tokens, failed = streams.from_codec(codec, Path(args.data))
        encode_start = streams.start_encoder(codec, Path(args.data))
        if hasattr(codec, "digest"):  # units carry no sound to be judged
            metrics = metrics or codec_sample(codec, Path(args.data))
    save = Path(args.save_lm) if args.save_lm else None
    found = token_lm.report(tokens, protocol, args.lm, metrics, save, encode_start)
    report = {"codec": str(args.codec)} | found | {"failed": failed}
    write_json(Path(args.output), report)
    print("\n".join(token_lm.summary(report)))
    return print_failures(failed, args.output)


def score_coherence(args: argparse.Namespace) -> int:
    """Coherence accuracies of a language model over a codec's tokens."""
    from llmcodec_jax.evaluation import audio_lm, salmon
    from llmcodec_jax.evaluation.reports import write_json
    from llmcodec_jax.lm.reading import reading

    codec = _codec(args.codec)
    model = audio_lm.load(args.lm, reading(args.reads, codec.levels), args.begin_token)
    if len(model.head) != codec.codebook_size * model.levels or model.levels > codec.levels:
        raise EvaluationError(
            f"{args.lm}: {len(model.head)} audio tokens, but the codec has "
            f"{codec.codebook_size} x {codec.levels}; this LM belongs to another codec"
        )
    parts = salmon.find_parts(args.data)
    parts = {name: pairs[: args.limit] for name, pairs in parts.items()}
    report = salmon.evaluate(parts, codec, salmon.likelihood_of(model, codec.levels))
    write_json(Path(args.output), report)
    print("\n".join(salmon.table(report)))
    return 0


def make_suite(args: argparse.Namespace) -> int:
    """A coherence suite with controls, made from a transcribed multi-speaker corpus."""
    from llmcodec_jax import audio
    from llmcodec_jax.data.sources import open_source
    from llmcodec_jax.evaluation import suite

    folder = Path(args.data.partition(":")[2] or args.data)
    corpus = suite.open_corpus(open_source(args.data), suite.read_genders(folder))
    noises = audio.find(args.noise) if args.noise else []
    made = suite.make(corpus, Path(args.output), args.pairs, args.seed, noises)
    for name, pairs in made.items():
        print(f"{name}: {pairs} pairs")
    return 0


def measure_consistency(args: argparse.Namespace) -> int:
    """Token edit distance under changes that do not alter the sound."""
    from llmcodec_jax.evaluation import consistency
    from llmcodec_jax.evaluation.reports import write_json

    report = consistency.evaluate(_codec(args.codec), Path(args.data), args.limit)
    write_json(Path(args.output), report)
    for name, value in report["mean"].items():
        print(f"{name:14s} {value:.4f} ± {report['interval'][name] or 0:.4f}")
    return print_failures(report["failed"], args.output)


def compare(args: argparse.Namespace) -> int:
    """One page (and its data) of any number of codecs."""
    from llmcodec_jax.evaluation import comparison
    from llmcodec_jax.evaluation.reports import write_json

    codecs = {}
    for name, _, paths in (entry.partition("=") for entry in args.codecs):
        if not paths:
            raise UsageError(f"{name}: expected NAME=report.json,token_lm.json,...")
        codecs[name] = comparison.read([Path(path) for path in paths.split(",")])
    folders = {name: Path(folder) for name, _, folder in (a.partition("=") for a in args.audio)}
    reference = Path(args.reference) if args.reference else None
    output = Path(args.output)
    print(comparison.write(output, codecs, reference, folders))
    write_json(output.with_suffix(".json"), codecs)
    return 0


def _codec(path: str):
    """A codec, or a folder of units, which encodes like one."""
    import llmcodec_jax
    from llmcodec_jax.data.cache import keep_compilations
    from llmcodec_jax.semantics import units

    keep_compilations(min_seconds=0.1)
    if (Path(path) / units.CONFIG_NAME).is_file():
        return units.load_units(path)
    return llmcodec_jax.load_codec(path)


def _token_lm_parser(commands) -> None:
    from llmcodec_jax.evaluation.protocol import TokenLMProtocol

    parser = commands.add_parser(
        "token_lm",
        help="how predictable a codec's tokens are, under one protocol for all codecs",
        description="Trains a small decoder LM from scratch on a codec's tokens (or on a folder "
        "of .npz token files made elsewhere) with several seeds. Numbers compare only between "
        "runs of the same protocol options on the same clips.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--codec", required=True, help="a codec, units, a folder of .npz files, or tokens:TABLE"
    )
    parser.add_argument("--data", help="folder of clips to encode (not needed for token files)")
    parser.add_argument("--output", default="token_lm.json", help="where the report goes")
    parser.add_argument("--codebook-size", type=int, help="of token files; else the largest code")
    parser.add_argument("--lm", help="pretrained LM folder or .gguf to tune with LoRA as well")
    parser.add_argument("--reconstruction", help="report.json to show beside token files")
    parser.add_argument("--save-lm", help="folder to keep the first seed's small LM in")
    parser.add_argument(
        "--seeds", type=int, default=len(TokenLMProtocol.seeds), help="how many seeds"
    )
    for field in dataclasses.fields(TokenLMProtocol):
        if field.name != "seeds":
            option = "--" + field.name.replace("_", "-")
            parser.add_argument(
                option, type=type(field.default), default=field.default, help="protocol"
            )
    parser.set_defaults(run=measure_tokens)


def _salmon_parsers(commands) -> None:
    parser = commands.add_parser(
        "salmon",
        help="coherence: does an LM over the tokens prefer the coherent clip",
        description="Reads SALMon's folder layout (PART/sample_INDEX_*.wav) and suites of the "
        "`suite` command alike.",
    )
    parser.add_argument("--data", required=True, help="folder of parts")
    parser.add_argument(
        "--codec", required=True, help="the codec or units whose tokens the LM reads"
    )
    parser.add_argument(
        "--lm", required=True, help="exported LM folder, or one of token_lm --save-lm"
    )
    parser.add_argument(
        "--reads", default="flat", help="an exported LM's `lm.reads` (default: flat)"
    )
    parser.add_argument("--begin-token", type=int, help="id that opens sequences (default: BOS)")
    parser.add_argument("--limit", type=int, help="pairs per part")
    parser.add_argument("--output", default="salmon.json", help="default: salmon.json")
    parser.set_defaults(run=score_coherence)
    parser = commands.add_parser(
        "suite",
        help="make a coherence suite with controls from a speech corpus",
        description="Parts: speaker, gender, background, room; each with a control. The same "
        "corpus and seed give the same files.",
    )
    parser.add_argument("--data", required=True, help="librispeech:DIR, folder:DIR, ...")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--pairs", type=int, default=100, help="per part (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--noise", help="folder of recorded backgrounds (default: generated ones)")
    parser.set_defaults(run=make_suite)


def _other_parsers(commands) -> None:
    parser = commands.add_parser(
        "consistency", help="token edit distance under shifts, noise, resampling, re-encoding"
    )
    parser.add_argument("--codec", required=True, help="run folder, converted folder or weights")
    parser.add_argument("--data", required=True, help="folder of clips")
    parser.add_argument("--limit", type=int, help="clips, as many from every sub-folder")
    parser.add_argument("--output", default="consistency.json", help="default: consistency.json")
    parser.set_defaults(run=measure_consistency)
    parser = commands.add_parser(
        "compare", help="one self-contained page of any number of codecs' reports"
    )
    parser.add_argument("codecs", nargs="+", metavar="NAME=FILES", help="NAME=a.json,b.json")
    parser.add_argument("--reference", help="folder of reference clips, to listen to")
    parser.add_argument("--audio", nargs="*", default=[], metavar="NAME=DIR", help="coded clips")
    parser.add_argument("--output", default="comparison.html", help="default: comparison.html")
    parser.set_defaults(run=compare)


@answer_errors
def main(argv: list[str] | None = None) -> int:
    """Runs one sub-command -> exit status (see `errors`)."""
    parser = argparse.ArgumentParser(
        prog="python -m llmcodec_jax.evaluate", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_reconstruction_parser, _token_lm_parser, _salmon_parsers, _other_parsers):
        add(commands)
    from llmcodec_jax.evaluation import abx, generated

    abx.add_parser(commands, _codec)
    generated.add_parser(commands)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return args.run(args)


if __name__ == "__main__":
    raise SystemExit(main())
