"""The study's config, typed: every option, its default and its meaning stand in these dataclasses.

configs/miniature.py starts from `default_study()`, states what it sets, and stays open to
--config.section.field=value; `read_study` makes a `StudyConfig` of the result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from llmcodec_jax.errors import UsageError
from llmcodec_jax.evaluation.protocol import TokenLMProtocol
from llmcodec_jax.ops import fields
from llmcodec_jax.study.teacher import TeacherConfig
from llmcodec_jax.training.config import default_config, read_config


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row: what it changes of `tuned`, against which teacher, from how many seeds."""

    seeds: int = 1  # runs from seeds 0, 1, ...; 0 leaves the row out
    teacher: str = "taught"  # of StudyConfig.teachers; not opened where the change takes the LM off
    change: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # sections of a run

    def config(self, tuned: ConfigDict) -> ConfigDict:
        """The run's config: a copy of `tuned` with the change. Raises for unknown fields."""
        changed = tuned.copy_and_resolve_references()
        changed.update(ConfigDict(dict(self.change)))
        return changed

    def trains_against_lm(self, tuned: ConfigDict) -> bool:
        """Whether the row has a language model at all."""
        return bool(self.config(tuned).lm.path)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What every codec goes through; the same for all."""

    clips: int = 12  # held-out clips of each source for reconstruction
    unseen: int = 48  # clips of voices that nothing here was trained on
    pairs: int = 120  # of each part of the coherence suite
    consistency: int = 16  # clips, as many of each source
    # Measures beside the benchmark's six (`evaluate reconstruction --additional`); those whose
    # packages are missing are left out and named.
    additional: tuple[str, ...] = ("wer", "speaker")
    lm_seeds: int = 3  # token LMs on the base: what their noise is on one fixed codec
    protocol: TokenLMProtocol = dataclasses.field(default_factory=TokenLMProtocol)


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """One base codec, the teachers of its tokens, rows that start from it, one evaluation."""

    base: ConfigDict  # run of stage 1
    tuned: ConfigDict  # run of stage 3, that every row changes
    teachers: Mapping[str, TeacherConfig]
    variants: Mapping[str, Variant]
    shares: Mapping[str, float]  # of each domain in a batch
    # (source, weight, domain) as in `data.sources`; () takes the sub-folders of --data by `shares`.
    sources: tuple[tuple[str, float, str], ...] = ()
    evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)

    def rows(self, seed: int) -> list[str]:
        """Names of the variants that are run from this seed, those with the most seeds first."""
        names = sorted(self.variants, key=lambda name: (-self.variants[name].seeds, name))
        return [name for name in names if seed < self.variants[name].seeds]

    @property
    def seeds(self) -> int:
        """The largest number of seeds of a row."""
        return max(variant.seeds for variant in self.variants.values())

    def teacher_of(self, name: str) -> str:
        """The teacher that a row had, "" without a language model."""
        variant = self.variants[name]
        return variant.teacher if variant.trains_against_lm(self.tuned) else ""


def default_study() -> ConfigDict:
    """Every option of a study with its default; teachers, rows, domains are for a file to add."""
    sections = {"base": default_config(), "tuned": default_config()}
    empty: dict[str, Any] = {name: ConfigDict() for name in ("teachers", "variants", "shares")}
    empty["sources"] = ()
    return ConfigDict(sections | empty | {"evaluation": fields.defaults(Evaluation)})


def teacher(**options: Any) -> dict[str, Any]:
    """A section of `teachers`: the defaults of TeacherConfig, changed by `options`."""
    return fields.defaults(TeacherConfig) | options


def variant(seeds: int = 1, teacher: str = "taught", **change: Any) -> dict[str, Any]:
    """A section of `variants`: `change` are sections of a run's config."""
    return {"seeds": seeds, "teacher": teacher, "change": change}


def read_study(config: ConfigDict) -> StudyConfig:
    """A config file's value -> StudyConfig, every run of it checked.

    Raises UsageError naming the field and the nearest.
    """
    fields.check_names(config.keys(), fields.options(StudyConfig), "")
    runs = {name: config[name] for name in ("base", "tuned")}
    for run in runs.values():
        read_config(run)
    teachers = {
        name: fields.build(TeacherConfig, section.to_dict(), f"teachers.{name}")
        for name, section in config.teachers.items()
    }
    variants = {}
    for name, section in config.variants.items():
        where = f"variants.{name}"
        made = fields.build(Variant, section.to_dict(), where)
        made = dataclasses.replace(made, change=section.get("change", ConfigDict()).to_dict())
        if made.teacher not in teachers:
            raise UsageError(fields.unknown(made.teacher, teachers, f"{where}.teacher"))
        try:
            read_config(made.config(runs["tuned"]))
        except (KeyError, AttributeError, UsageError) as error:  # a field that no run has
            raise UsageError(f"config.{where}.change: {error}") from error
        variants[name] = made
    evaluation = fields.build(Evaluation, config.evaluation.to_dict(), "evaluation")
    return StudyConfig(
        **runs,
        teachers=teachers,
        variants=variants,
        shares=config.shares.to_dict(),
        sources=tuple(tuple(source) for source in config.sources),
        evaluation=evaluation,
    )


def scale(config: ConfigDict, budget: float) -> None:
    """Multiplies every step count by `budget`; below 1/2 only the main comparison is run.

    A budget leaves no stage fewer than 20 steps, unless its config asks for fewer. A small one
    goes without the additional measures: a recogniser costs more than the whole smoke test.
    """
    parts = [config.base, config.tuned, *config.teachers.values(), config.evaluation.protocol]
    for part in parts:
        name = "total_steps" if "total_steps" in part else "steps"
        part[name] = max(round(part[name] * budget), min(part[name], 20))
    if budget < 0.5:
        config.evaluation.additional = ()
        for name, variant in config.variants.items():
            variant.seeds = int(name in ("control", "ftp_sa"))


def variant_config(
    study: StudyConfig, name: str, seed: int, base: Path | str, teacher: Path | str, begin: int
) -> ConfigDict:
    """`tuned`, where base and LM lie, and what the variant changes of it."""
    c = study.tuned.copy_and_resolve_references()
    c.seed = seed
    c.init = str(base)
    c.lm.update(path=str(teacher), begin_token=begin, embedding_start=f"from:{teacher}")
    return study.variants[name].config(c)
