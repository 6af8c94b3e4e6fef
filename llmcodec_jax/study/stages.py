"""The study's stages. Each leaves a folder, is skipped once that is whole, and else resumes."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

import llmcodec_jax
from llmcodec_jax import audio
from llmcodec_jax.data.embedded import lm_path
from llmcodec_jax.data.sources import open_source, split_source
from llmcodec_jax.errors import UsageError
from llmcodec_jax.evaluation import (
    audio_lm,
    consistency,
    reconstruction,
    reports,
    salmon,
    suite,
    token_lm,
)
from llmcodec_jax.evaluation.streams import StartEncoder, Streams
from llmcodec_jax.lm.load import load_lm
from llmcodec_jax.ops import fields
from llmcodec_jax.study import results, teacher
from llmcodec_jax.study.config import Evaluation, StudyConfig, variant_config
from llmcodec_jax.study.jobs import InterruptedRunError, Row
from llmcodec_jax.study.material import UNSEEN, Material, find_sources, find_unseen
from llmcodec_jax.training import run as training
from llmcodec_jax.training.config import default_config

logger = logging.getLogger(__name__)


def check_inputs(folder: Path, inputs: dict, defaults: dict | None = None) -> None:
    """Notes what a stage's folder is made from. Raises UsageError if it was something else.

    `defaults`: what an option was that an older note does not have.
    """
    note = folder / "inputs.json"
    inputs = json.loads(json.dumps(inputs))
    if note.exists():
        before = _filled(json.loads(note.read_text()), json.loads(json.dumps(defaults or {})))
        changed = sorted(k for k in inputs.keys() | before.keys() if inputs.get(k) != before.get(k))
        if changed:
            raise UsageError(
                f"{folder} was made with another {', '.join(changed)}; remove it or use another "
                "--workdir"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    reports.write_json(note, inputs)


def _filled(values: dict, defaults: dict) -> dict:
    """`values`, with what they and their sections lack."""
    found = dict(values)
    for name, default in defaults.items():
        if name not in found:
            found[name] = default
        elif isinstance(default, dict) and isinstance(found[name], dict):
            found[name] = _filled(found[name], default)
    return found


def gather(study: StudyConfig, data: Path) -> Material:
    """The clips of the study's sources or below `data`, split as the base's training does."""
    options = {name: study.base.data[name] for name in ("eval_fraction", "eval_max")}
    return Material(
        study.sources or find_sources(data, dict(study.shares)),
        study.base.codec.sample_rate,
        options | {"by": study.base.data.split_by},
        find_unseen(data),
    )


def train_run(config: ConfigDict, folder: Path, sources: tuple) -> None:
    """One training run, unless its report is there already. Raises InterruptedRunError."""
    config.data.sources = sources
    inputs = {**config.to_dict(), "data": config.data.to_dict() | {"sources": None}}
    check_inputs(folder, inputs, default_config(config.codec.name).to_dict())
    if (folder / "report.html").exists():
        return
    logger.info("training %s, %d steps", folder.name, config.total_steps)
    if not training.run(config, folder):
        raise InterruptedRunError(folder)


@dataclasses.dataclass
class Coded:
    """A trained codec and what it makes of the audio; each is made when first asked for, once."""

    folder: Path
    material: Material

    @functools.cached_property
    def codec(self):
        return llmcodec_jax.load_codec(self.folder, batch_size=8)

    @functools.cached_property
    def streams(self) -> Streams:
        return self.material.streams(self.codec)

    @functools.cached_property
    def encode_start(self) -> StartEncoder:
        return self.material.start_encoder(self.codec)


def train_teacher(settings: teacher.TeacherConfig, folder: Path, base: Coded) -> int:
    """Teaches the frozen LM the base codec's tokens -> the id of its begin token."""
    check_inputs(folder, dataclasses.asdict(settings), fields.defaults(teacher.TeacherConfig))
    summary = folder / "teacher.json"
    if not summary.exists():
        report = teacher.train_teacher(
            lm_path(settings.path), folder, base.streams, base.material.texts(), settings
        )
        reports.write_json(summary, report)
    lm_config, _, tokenizer = load_lm(folder)
    return audio_lm.begin_token(lm_config, tokenizer)


class HeldOut(NamedTuple):
    """Folders that every codec is tested on."""

    clips: Path  # held-out clips, SOURCE/ID.wav
    pairs: Path  # coherence suite made of them
    unseen: Path | None  # clips of voices that nothing was trained on


def held_out(folder: Path, material: Material, settings: Evaluation) -> HeldOut:
    """Writes what every codec is tested on below `folder`, once."""
    clips, pairs, unseen = folder / "clips", folder / "suite", folder / "unseen"
    numbers = {name: getattr(settings, name) for name in ("clips", "pairs", "unseen")}
    check_inputs(folder, numbers | {"sources": len(material.unseen)})
    if not (folder / "clips.done").exists():
        material.write_held_out(clips, settings.clips)
        material.write_held_out(unseen, settings.unseen, UNSEEN)
        (folder / "clips.done").touch()
    if not (folder / "suite.done").exists():
        for spec, corpus in _voices(material):
            place = Path(spec.partition(":")[2])
            logger.info("coherence suite from %s", place.name)
            noises = audio.find(clips / "sound") if (clips / "sound").is_dir() else []
            suite.make(
                suite.open_corpus(corpus, suite.read_genders(place)),
                pairs,
                settings.pairs,
                seed=0,
                noises=noises,
            )
            break
        (folder / "suite.done").touch()
    return HeldOut(clips, pairs, unseen if material.unseen else None)


def _voices(material: Material) -> Iterator:
    """Held-out parts with several speakers, the most spoken first."""
    found = []
    for spec, _, domain in material.sources:
        corpus = split_source(open_source(spec), "eval", **material.split)
        speakers = {corpus.group(i) for i in range(len(corpus))}
        if domain == "speech" and len(speakers) > 1:
            found.append((len(speakers), spec, corpus))
    yield from ((spec, corpus) for _, spec, corpus in sorted(found, key=lambda f: -f[0]))


def _report_paths(folder: Path, test: HeldOut, base: bool = False) -> dict[str, Path]:
    """Where what `evaluate` finds of a codec is kept."""
    names = [*results.REPORTS, *[results.HEAD_START] * base, *[UNSEEN] * bool(test.unseen)]
    return {name: folder / "evaluation" / f"{name}.json" for name in names}


def evaluate(coded: Coded, test: HeldOut, settings: Evaluation, base: bool = False) -> None:
    """Reconstruction, token LM, coherence and consistency of a codec, kept in its folder.

    The `base` is measured with more seeds of the token LM, whose noise on one fixed codec is what
    any difference between codecs has to stand out from, and once more with an LM whose audio rows
    already know the tokens.
    """
    folder, protocol = coded.folder, settings.protocol
    if base:
        protocol = dataclasses.replace(protocol, seeds=tuple(range(settings.lm_seeds)))
    output = folder / "evaluation"
    check_inputs(output, dataclasses.asdict(settings), fields.defaults(Evaluation))
    paths = _report_paths(folder, test, base)
    if all(path.exists() for path in paths.values()):
        return
    logger.info("evaluating %s", folder.name)
    codec = coded.codec
    sets = {"report": (test.clips, output / "audio"), UNSEEN: (test.unseen, None)}
    for name, (clips, keep) in sets.items():
        if clips is not None and not paths[name].exists():
            reconstruction.evaluate(
                reconstruction.match_folders(clips, None),
                paths[name],
                codec.digest,
                reconstruction.codec_coder(llmcodec_jax.load_codec(folder)),
                settings.additional,
                keep=keep,
            )
    metrics = json.loads(paths["report"].read_text())["mean"]
    if not paths["token_lm"].exists():
        content = token_lm.report(
            coded.streams, protocol, None, metrics, output / "token_lm", coded.encode_start
        )
        reports.write_json(paths["token_lm"], content)
    model = audio_lm.load(output / "token_lm")
    if not paths["salmon"].exists():
        parts = salmon.find_parts(test.pairs) if test.pairs.is_dir() else {}
        found = salmon.evaluate(parts, codec, salmon.likelihood_of(model, codec.levels))
        reports.write_json(paths["salmon"], found)
    if not paths["consistency"].exists():
        found = consistency.evaluate(codec, test.clips, settings.consistency)
        reports.write_json(paths["consistency"], found)
    if base and not paths[results.HEAD_START].exists():
        found = token_lm.measure_with_rows_of(model, coded.streams, protocol)
        reports.write_json(paths[results.HEAD_START], found)


@dataclasses.dataclass(frozen=True)
class Rows:
    """What every row starts from and is judged by; small enough to be sent to a process."""

    study: StudyConfig
    workdir: Path
    material: Material
    test: HeldOut
    begins: dict[str, int]  # begin tokens of the teachers

    def folder(self, row: Row) -> Path:
        """Where a row's run lies."""
        return self.workdir / "variants" / str(row)

    def folders(self, rows: Iterable[Row]) -> dict[str, dict[int, Path]]:
        """The base's folder and those of `rows`: name -> seed -> folder."""
        found = {"base": {0: self.workdir / "base"}}
        for row in rows:
            found.setdefault(row.name, {})[row.seed] = self.folder(row)
        return found

    def is_whole(self, row: Row) -> bool:
        """Whether a row was trained and evaluated to the end."""
        folder = self.folder(row)
        reports = _report_paths(folder, self.test).values()
        return all(path.exists() for path in (folder / "report.html", *reports))

    def finish(self, row: Row) -> None:
        """Trains and evaluates a row, from wherever its folder stands."""
        study, folder, taught = self.study, self.folder(row), self.study.teacher_of(row.name)
        base, teacher = self.workdir / "base", self.workdir / "teachers" / taught
        begin = self.begins.get(taught, 0)
        run = variant_config(study, row.name, row.seed, base, teacher, begin)
        train_run(run, folder, self.material.sources)
        evaluate(Coded(folder, self.material), self.test, study.evaluation)
