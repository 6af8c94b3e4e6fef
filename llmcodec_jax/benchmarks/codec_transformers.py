"""The same clips through transformers' models: run it beside `benchmarks codec`.

    python llmcodec_jax/benchmarks/codec_transformers.py --family encodec [--batch 1 8]

A script of its own for an environment with PyTorch and transformers, of which this package needs
neither. Random weights at the published sizes, as there.
"""

from __future__ import annotations

import argparse
import sys
import time


def build(family: str):
    """-> (model, encode(wav [B, 1, N]) -> codes, decode(codes), sample rate, hop)."""
    sys.modules["torchaudio"] = None  # not needed, and an error where it is broken
    import transformers

    if family == "encodec":
        model = transformers.EncodecModel(transformers.EncodecConfig()).eval()
        return (
            model,
            lambda wav: model.encode(wav, bandwidth=24.0),
            lambda found: model.decode(found.audio_codes, found.audio_scales),
            model.config.sampling_rate,
            model.config.hop_length,
        )
    if family == "mimi":
        model = transformers.MimiModel(transformers.MimiConfig()).eval()
        return (
            model,
            lambda wav: model.encode(wav),
            lambda found: model.decode(found.audio_codes),
            model.config.sampling_rate,
            model.config.frame_size,
        )
    config = transformers.DacConfig(
        downsampling_ratios=[2, 4, 8, 8], n_codebooks=9, sampling_rate=44_100
    )
    model = transformers.DacModel(config).eval()
    return (
        model,
        lambda wav: model.encode(wav),
        lambda found: model.decode(audio_codes=found.audio_codes),
        config.sampling_rate,
        config.hop_length,
    )


def best(call, repeats: int) -> tuple[float, float]:
    """The least (wall seconds, CPU seconds) of `repeats` calls."""
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return min(walls), min(cpus)


def main() -> int:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", required=True, choices=("dac", "encodec", "mimi"))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    model, encode, decode, rate, hop = build(args.family)
    torch.set_num_threads(args.threads)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count:,} parameters, float32, torch {torch.__version__}, {args.threads} threads")
    with torch.no_grad():
        for batch in args.batch:
            wav = 0.1 * torch.randn(batch, 1, int(args.seconds * rate) // hop * hop)
            found = encode(wav)
            decode(found)
            there, there_cpu = best(lambda wav=wav: encode(wav), args.repeats)
            back, back_cpu = best(lambda found=found: decode(found), args.repeats)
            print(
                f"batch {batch}: {(there + back) / batch:.3f} s per {args.seconds:g}-s clip; CPU "
                f"seconds {there_cpu / batch:.3f} to encode, {back_cpu / batch:.3f} to decode",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
