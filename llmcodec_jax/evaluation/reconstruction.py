"""Codec-SUPERB over folders: parallel, resumable, per clip, category and overall (method.md 8)."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

import numpy as np
from tqdm import tqdm

from llmcodec_jax import audio
from llmcodec_jax.evaluation import additional, codec_superb
from llmcodec_jax.evaluation.reports import (
    EvaluationError,
    columns,
    defined,
    intervals,
    means,
    summarise_columns,
    write_json,
)


@dataclasses.dataclass(frozen=True)
class Clip:
    """One comparison to make."""

    name: str  # path relative to the reference folder, with forward slashes
    reference: Path
    estimate: Path | None  # None: made by a codec

    def key(self, source: str) -> str:
        """Changes whenever a file, the codec or the installed metrics change."""
        files = [p.stat() for p in (self.reference, self.estimate) if p is not None]
        stamps = [f"{s.st_size}:{s.st_mtime_ns}" for s in files]
        return "|".join([source, *stamps])


@dataclasses.dataclass(frozen=True)
class Coded:
    """What a codec made of one clip."""

    wav: np.ndarray  # float32 [channels, N]
    rate: int  # Hz
    codes: np.ndarray | None = None  # int [T] or [T, Q]


def match_folders(reference: str | Path, estimate: str | Path | None) -> list[Clip]:
    """Clips of the reference folder with the estimate of the same name (any audio extension)."""
    reference = Path(reference)
    paths = audio.find(reference)
    if estimate is None:
        return [Clip(p.relative_to(reference).as_posix(), p, None) for p in paths]
    estimate = Path(estimate)
    found = {p.relative_to(estimate): p for p in audio.find(estimate)}
    stems = {p.with_suffix(""): path for p, path in found.items()}
    clips, missing = [], []
    for path in paths:
        name = path.relative_to(reference)
        match = found.get(name) or stems.get(name.with_suffix(""))
        if match is None:
            missing.append(name.as_posix())
        clips.append(Clip(name.as_posix(), path, match))
    if missing:
        raise EvaluationError(
            f"{estimate}: no estimate of {len(missing)} of {len(paths)} reference clips, "
            f"first {missing[0]}; make them, or point --reference at the clips that exist"
        )
    return clips


def evaluate(
    clips: list[Clip],
    output: Path,
    source: str,
    code: Callable[[Path], Coded] | None = None,
    optional: tuple[str, ...] = (),
    workers: int | None = None,
    keep: Path | None = None,
) -> dict:
    """Scores all clips and writes the report to `output`; returns it.

    `source` names what made the estimates; `code` makes them where clips have none (a codec: it
    runs in this process while `workers` processes score). Finished clips are kept in
    `output` + "l" (a journal), so that a second call after an interruption carries on; it
    goes once the report is whole. `keep`: folder to write a codec's reconstructions to.
    """
    optional = tuple(name for name in optional if name not in additional.absent(optional))
    scored = sorted(set(codec_superb.METRICS) - set(codec_superb.absent()))
    source = "|".join([source, *scored, *optional])
    journal = output.with_name(output.name + "l")
    output.parent.mkdir(parents=True, exist_ok=True)
    keys = {clip.name: clip.key(source) for clip in clips}
    rows = {r["name"]: r for r in _read_journal(journal) if keys.get(r["name"]) == r["key"]}
    todo = [clip for clip in clips if clip.name not in rows]
    jobs = ((clip, _estimate(clip, code, keep), optional) for clip in todo)
    with journal.open("a") as log:
        for row in tqdm(_in_parallel(jobs, workers), "scoring", len(clips), initial=len(rows)):
            row["key"] = keys[row["name"]]
            log.write(json.dumps(row) + "\n")
            log.flush()
            rows[row["name"]] = row
    report = summarise([rows[clip.name] for clip in clips])
    report["absent"] = codec_superb.absent() | additional.absent(optional)
    write_json(output, report)
    journal.unlink()
    return report


def summarise(rows: list[dict]) -> dict:
    """Rows of `score_clip` -> the report: mean, categories (first sub-folder) and items.

    Undefined values are null and take no part in a mean; `undefined` counts them. `interval` is
    the half-width of the mean's 95 % confidence interval over clips.
    """
    items = {row["name"]: row["metrics"] for row in rows}
    categories: dict[str, list[dict]] = {}
    for name, values in items.items():
        if "/" in name:
            categories.setdefault(name.split("/")[0], []).append(values)
    extra = {row["name"]: row["additional"] for row in rows}
    report = {
        "mean": means(items.values()),
        "categories": {name: means(group) for name, group in sorted(categories.items())},
        "items": items,
        "interval": intervals(items.values()),
        "undefined": _undefined(items.values()),
        "additional": summarise_columns(extra.values()) | {"items": extra},
    }
    coded = [row for row in rows if row.get("codes") is not None]
    if coded:
        report["codes"] = {"seconds": sum(r["seconds"] for r in coded)} | _code_use(coded)
    return report


def score_clip(clip: Clip, estimate: Coded | None, optional: tuple[str, ...]) -> dict:
    """One row: the six metrics, the additional ones, and the codes where a codec made them."""
    reference, rate = audio.read(clip.reference)
    reference = reference.T
    if estimate is None:
        wav, estimate_rate = audio.read(clip.estimate)
        estimate = Coded(wav.T, estimate_rate)
    elif len(reference) > 1:
        reference = reference.mean(axis=0, keepdims=True)  # codecs hear mono
    metrics = codec_superb.score(reference, rate, estimate.wav, estimate.rate)
    wav = codec_superb.sinc_resample(estimate.wav.mean(axis=0, keepdims=True), estimate.rate, rate)
    mono = codec_superb.match_lengths(reference.mean(axis=0, keepdims=True), wav)
    row = {
        "name": clip.name,
        "seconds": reference.shape[1] / rate,
        "metrics": {k: defined(v) for k, v in metrics.items()},
        "additional": {
            k: defined(v)
            for k, v in additional.score(mono[0][0], mono[1][0], rate, optional).items()
        },
    }
    if estimate.codes is not None:
        row["codes"] = np.asarray(estimate.codes).tolist()
    return row


def codec_coder(codec) -> Callable[[Path], Coded]:
    """The benchmark's way through a codec, as a function of a file (method.md 8).

    Mono, resampled to the codec's rate, coded, cut to the input's length, resampled back.
    """

    def code(path: Path) -> Coded:
        wav, rate = audio.read(path)
        heard = audio.resample(wav.mean(axis=1), rate, codec.sample_rate)
        codes = codec.encode(heard, codec.sample_rate)
        made = np.asarray(codec.decode(codes), np.float32)[: len(heard)]
        return Coded(audio.resample(made, codec.sample_rate, rate)[None], rate, np.asarray(codes))

    return code


def codec_sample(codec, folder: Path, clips: int = 24) -> dict[str, float | None]:
    """Mean metrics of a codec on clips spread evenly over a folder, in this process."""
    paths = audio.find(folder)
    chosen = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, clips).astype(int))]
    code = codec_coder(codec)
    rows = []
    for path in tqdm(chosen, "reconstruction", unit="clip"):
        row = score_clip(Clip(path.name, path, None), code(path), ())
        rows.append(row["metrics"])
    return means(rows)


def _estimate(clip: Clip, code: Callable[[Path], Coded] | None, keep: Path | None) -> Coded | None:
    if clip.estimate is not None:
        return None  # the scoring process reads the file
    coded = code(clip.reference)
    if keep is not None:
        audio.write((keep / clip.name).with_suffix(".wav"), coded.wav[0], coded.rate)
    return coded


def _in_parallel(jobs: Iterable[tuple], workers: int | None) -> Iterator[dict]:
    """Runs `score_clip` over jobs in processes; few jobs wait at a time, so memory stays small."""
    workers = workers or os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")  # forking a process that runs JAX can hang
    with ProcessPoolExecutor(workers, context, initializer=_single_thread) as pool:
        waiting: set[Future] = set()
        try:
            for job in jobs:
                waiting.add(pool.submit(score_clip, *job))
                if len(waiting) >= 4 * workers:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            pool.shutdown(cancel_futures=True)


def _single_thread() -> None:
    """One thread a process: the processes are the parallelism."""
    import threadpoolctl

    threadpoolctl.threadpool_limits(1)


def _read_journal(path: Path) -> Iterator[dict]:
    """Complete lines of a journal; a line cut short by an interruption is skipped."""
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def _code_use(rows: list[dict]) -> dict:
    """Rate and use of the codes over all clips; each codebook has its own statistics."""
    streams = np.concatenate([np.asarray(r["codes"]).reshape(len(r["codes"]), -1) for r in rows])
    used, entropy = [], []
    for column in streams.T:
        share = np.unique(column, return_counts=True)[1] / len(column)
        used.append(len(share))
        entropy.append(float(-np.sum(share * np.log(share))))
    return {"tokens": int(streams.size), "codes_used": used, "unigram_entropy": entropy}


def _undefined(rows: Iterable[dict]) -> dict[str, int]:
    rows = list(rows)
    counts = {name: len(rows) - len(v) for name, v in columns(rows).items()}
    return {name: count for name, count in counts.items() if count}
