"""Codec-SUPERB over folders: parallel, resumable, per clip, category and overall (method.md 8)."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

import numpy as np
from tqdm import tqdm

from llmcodec_jax import audio
from llmcodec_jax.data.records import stable_hash
from llmcodec_jax.evaluation import additional, codec_superb, whisper
from llmcodec_jax.evaluation.reports import (
    EvaluationError,
    columns,
    defined,
    intervals,
    means,
    summarise_columns,
    write_json,
)
from llmcodec_jax.evaluation.sampling import from_every_folder
from llmcodec_jax.ops import files
from llmcodec_jax.ops.cores import available


@dataclasses.dataclass(frozen=True)
class Clip:
    """One comparison to make."""

    name: str  # path relative to the reference folder, with forward slashes
    reference: Path
    estimate: Path | None  # None: made by a codec

    def key(self, source: str) -> str:
        """Changes whenever a file, the codec or the installed metrics change."""
        found = [p.stat() for p in (self.reference, self.estimate) if p is not None]
        stamps = [f"{s.st_size}:{s.st_mtime_ns}" for s in found]
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
    runs in this process while `workers` processes score). `keep`: folder to write a codec's
    reconstructions to. Clips that cannot be read or coded are the report's `failed`.

    A report of the same files, source and metrics is returned as it is. Until it is whole, finished
    clips are kept in `output` + "l" (a journal), so that a second call carries on.
    """
    absent = codec_superb.absent() | additional.absent(optional)
    optional = tuple(name for name in optional if name not in absent)
    scored = sorted(set(codec_superb.METRICS) - set(absent))
    listener = [whisper.describe()] if "wer" in optional else []
    source = "|".join([source, *scored, *optional, *listener])
    keys = {clip.name: clip.key(source) for clip in clips}
    digest = f"{stable_hash(json.dumps(keys), 64):016x}"
    if (finished := _finished(output, digest, clips, keep)) is not None:
        return finished
    journal = output.with_name(output.name + "l")
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = {
        row["name"]: row
        for row in files.read_json_lines(journal)
        if row.get("key") is not None and keys.get(row["name"]) == row["key"]
    }
    todo = [clip for clip in clips if clip.name not in rows or not _kept(clip, keep)]
    failed: dict[str, str] = {}
    jobs = _jobs(todo, code, keep, optional, failed)
    with journal.open("a") as log:
        bar = tqdm(total=len(clips), desc="scoring", unit="clip", initial=len(clips) - len(todo))
        for row in _in_parallel(jobs, workers):
            bar.update()
            if "error" in row:
                failed[row["name"]] = row["error"]
                continue
            row["key"] = keys[row["name"]]
            log.write(json.dumps(row) + "\n")
            log.flush()
            rows[row["name"]] = row
        bar.close()
    report = summarise([rows[clip.name] for clip in clips if clip.name in rows])
    report |= {"absent": absent, "failed": failed, "key": digest}
    write_json(output, report)
    if not failed:
        journal.unlink()
    return report


def _finished(output: Path, digest: str, clips: list[Clip], keep: Path | None) -> dict | None:
    """The report at `output`, if it is whole and of these very files and metrics."""
    if not output.exists() or not all(_kept(clip, keep) for clip in clips):
        return None
    try:
        report = json.loads(output.read_text())
    except (OSError, json.JSONDecodeError):
        return None
    whole = isinstance(report, dict) and report.get("key") == digest and not report.get("failed")
    return report if whole else None


def _kept_path(clip: Clip, keep: Path) -> Path:
    return (keep / clip.name).with_suffix(".wav")


def _kept(clip: Clip, keep: Path | None) -> bool:
    """Whether there is nothing to keep of a clip, or it is there."""
    return keep is None or clip.estimate is not None or _kept_path(clip, keep).exists()


def _jobs(
    clips: list[Clip],
    code: Callable[[Path], Coded] | None,
    keep: Path | None,
    optional: tuple[str, ...],
    failed: dict[str, str],
) -> Iterator[tuple]:
    """Arguments of `score_clip`, coded where clips have no estimate; names failures in `failed`."""
    for clip in clips:
        coded = None
        if clip.estimate is None:
            try:
                coded = code(clip.reference)
            except audio.AudioError as error:
                failed[clip.name] = str(error)
                continue
            if keep is not None:
                audio.write(_kept_path(clip, keep), coded.wav[0], coded.rate, exact=True)
        yield clip, coded, optional


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
    heard = [row for row in rows if "hearing" in row]
    if heard:
        report["hearing"] = whisper.summarise(heard)
    coded = [row for row in rows if row.get("codes") is not None]
    if coded:
        report["codes"] = {"seconds": sum(r["seconds"] for r in coded)} | _code_use(coded)
    return report


def score_clip(clip: Clip, estimate: Coded | None, optional: tuple[str, ...]) -> dict:
    """One row: the six metrics, the additional ones, what was heard ("wer"), a codec's codes.

    The estimate, whoever made it, is brought to the reference's rate here and nowhere else, so
    that a codec and the files it wrote get the same score. {"name", "error"} where a file is
    unusable.
    """
    try:
        reference, rate = audio.read(clip.reference)
        if estimate is None:
            wav, estimate_rate = audio.read(clip.estimate)
            estimate = Coded(wav.T, estimate_rate)
    except audio.AudioError as error:
        return {"name": clip.name, "error": str(error)}
    reference = reference.T
    if len(reference) != len(estimate.wav):  # codecs hear mono
        reference = reference.mean(axis=0, keepdims=True)
        estimate = dataclasses.replace(estimate, wav=estimate.wav.mean(axis=0, keepdims=True))
    wav = audio.resample(estimate.wav.T, estimate.rate, rate).T
    metrics = codec_superb.score(reference, rate, wav, rate)
    mono = codec_superb.match_lengths(*(x.mean(axis=0, keepdims=True) for x in (reference, wav)))
    extra, hearing = additional.score(mono[0][0], mono[1][0], rate, optional), {}
    if "wer" in optional:
        speech = [audio.resample(x[0], rate, whisper.RATE) for x in mono]
        rates, heard = whisper.score(*speech, whisper.text_beside(clip.reference))
        extra, hearing = extra | rates, {"hearing": heard}
    row = {
        "name": clip.name,
        "seconds": reference.shape[1] / rate,
        "metrics": {k: defined(v) for k, v in metrics.items()},
        "additional": {k: defined(v) for k, v in extra.items()},
        **hearing,
    }
    if estimate.codes is not None:
        row["codes"] = np.asarray(estimate.codes).tolist()
    return row


def codec_coder(codec) -> Callable[[Path], Coded]:
    """The benchmark's way through a codec, as a function of a file (docs/method.md 8).

    Mono, resampled to the codec's rate, coded, cut to the input's length; unrounded and unclipped
    floats. `decode` and `keep` write the same, and so score the same. Raises AudioError.
    """

    def code(path: Path) -> Coded:
        wav, rate = audio.read(path)
        heard = audio.resample(wav.mean(axis=1), rate, codec.sample_rate)
        if not len(heard):
            raise audio.AudioError(f"{path}: too short to code")
        codes = codec.encode(heard, codec.sample_rate)
        made = np.asarray(codec.decode(codes), np.float32)[: len(heard)]
        return Coded(made[None], codec.sample_rate, np.asarray(codes))

    return code


def codec_sample(codec, folder: Path, clips: int = 24) -> dict[str, float | None]:
    """Mean metrics of a codec on clips of all a folder's sub-folders, in this process."""
    names = {path.relative_to(folder).as_posix(): path for path in audio.find(folder)}
    code, rows = codec_coder(codec), []
    for name in tqdm(from_every_folder(list(names), clips), "reconstruction", unit="clip"):
        try:
            row = score_clip(Clip(name, names[name], None), code(names[name]), ())
        except audio.AudioError as error:
            row = {"error": str(error)}
        if "error" in row:
            tqdm.write(f"left out: {row['error']}")
        else:
            rows.append(row["metrics"])
    return means(rows)


def _in_parallel(jobs: Iterable[tuple], workers: int | None) -> Iterator[dict]:
    """Runs `score_clip` over jobs in processes; few jobs wait at a time, so memory stays small."""
    workers = workers or len(available())
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
