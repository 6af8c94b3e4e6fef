"""The package as users get it: one command, true dependencies, and what a wheel holds."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
import tomllib
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

import llmcodec_jax
from llmcodec_jax.__main__ import COMMANDS, main, usage

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WHEEL_LIMIT = 20e6  # bytes
TRAINING_ONLY = ("grain", "tensorflow_datasets", "tensorboardX", "ml_collections")


def requirements(lines: list[str]) -> dict[str, str]:
    """package -> its whole requirement, in lower case."""
    plain = [line.split("#")[0].strip().lower() for line in lines]
    return {re.split(r"[<>=\[ ]", line)[0]: line for line in plain if line}


def test_requirements_file_is_what_the_package_asks_for():
    """`requirements.txt` installs what training, evaluation and the tests need; neither drifts."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    asked = requirements(PYPROJECT["project"]["dependencies"] + extras["train"] + extras["eval"])
    tools = requirements(extras["dev"] + extras["docs"])
    listed = requirements((ROOT / "requirements.txt").read_text().splitlines())
    assert asked.items() <= listed.items()
    assert listed.items() <= (asked | tools).items()


DISTRIBUTIONS = {
    "absl": "absl-py",
    "array_record": "array-record",
    "faster_whisper": "faster-whisper",
    "google": "protobuf",
    "orbax": "orbax-checkpoint",
    "parselmouth": "praat-parselmouth",
    "sklearn": "scikit-learn",
    "tensorflow_datasets": "tensorflow-datasets",
    "whisper_normalizer": "whisper-normalizer",
}
"""Where what is imported has another name than what is installed."""
ASKED_FOR_IN_WORDS = {"pesq", "ray", "torch", "transformers", "wandb"}
"""Imported only where the feature is used, with a message that says what to install."""


def test_everything_imported_is_required():
    """scipy, threadpoolctl, etils and protobuf came along with others until they did not."""
    imported = set()
    for path in (ROOT / "llmcodec_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    imported -= sys.stdlib_module_names | ASKED_FOR_IN_WORDS | {"llmcodec_jax", "configs"}
    project = PYPROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    declared = requirements(project["dependencies"] + extras)
    assert {DISTRIBUTIONS.get(name, name).lower() for name in imported} <= declared.keys()


def test_every_command_is_listed():
    scripts = {
        ".".join(path.relative_to(ROOT / "llmcodec_jax").with_suffix("").parts)
        for path in (ROOT / "llmcodec_jax").rglob("*.py")
        if '\nif __name__ == "__main__":' in path.read_text()
    }
    parts = {name for name in scripts if name.startswith("benchmarks.")}
    scripts -= parts - {"benchmarks.__main__"}  # one command
    scripts.discard("portable.example")  # goes along with an export and runs on its own
    assert scripts - {"__main__"} == {command.module for command in COMMANDS.values()}


def test_extras_named_by_commands_exist():
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert {command.extra for command in COMMANDS.values()} - {""} <= extras.keys()


PARSED_BY_ARGPARSE = [name for name, command in COMMANDS.items() if not command.takes_config]


@pytest.mark.parametrize("name", PARSED_BY_ARGPARSE)
def test_help_of_a_command_is_no_failure(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)  # which the command is given
    try:
        status = main([name, "--help"])
    except SystemExit as end:
        status = end.code
    assert status == 0
    assert capsys.readouterr().out.strip()


def test_an_unknown_command_is_refused_with_the_list(capsys):
    assert main(["enocde"]) == 2
    assert usage() in capsys.readouterr().err


def test_version_is_the_changelogs(capsys):
    assert main(["--version"]) == 0
    assert llmcodec_jax.__version__ in capsys.readouterr().out
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] == llmcodec_jax.__version__


def test_help_imports_nothing_heavy():
    """What keeps `llmcodec --help` below 0.3 s on any machine: the standard library alone."""
    code = (
        "import sys; from llmcodec_jax.__main__ import main; main(['--help']);"
        "sys.exit(','.join(m for m in ('numpy', 'jax', 'flax', 'absl') if m in sys.modules) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    from llmcodec_jax.training import command_line

    monkeypatch.chdir(tmp_path)
    expected = str(ROOT / "configs/quickstart.py")
    for name in ("quickstart", "quickstart.py", "configs/quickstart.py"):
        assert command_line.find_config(name) == expected
    assert command_line.find_config("configs/nothing.py") == "configs/nothing.py"
    Path("quickstart.py").write_text("")
    assert command_line.find_config("quickstart.py") == "quickstart.py", "one's own file wins"


def run(*command, **options) -> str:
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, **options
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(wheel, sdist), the wheel built from the sdist as a package index would."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


@pytest.mark.slow
def test_wheel_and_sdist_hold_the_package(built):
    wheel, sdist = built
    assert wheel.stat().st_size <= WHEEL_LIMIT
    assert sdist.stat().st_size <= WHEEL_LIMIT
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("py.typed", "mini/codec.safetensors", "mini/README.md", "configs/base.py"):
        assert f"llmcodec_jax/{needed}" in names
    assert not [name for name in names if name.startswith("tests")]


@pytest.mark.slow
def test_installed_alone_it_codes_from_any_folder(built, tmp_path):
    """A fresh environment with the core dependencies: encode, decode, evaluate, load_codec."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    run(python, "-m", "pip", "install", "--quiet", built[0])
    clips = tmp_path / "clips"
    clips.mkdir()
    time_axis = np.arange(16000) / 16000
    tone = 0.3 * np.sin(2 * np.pi * 220 * time_axis) * np.sin(2 * np.pi * 3 * time_axis)
    soundfile.write(clips / "a.wav", tone, 16000)
    llmcodec, there = tmp_path / "env/bin/llmcodec", dict(cwd=tmp_path)
    start = time.perf_counter()
    assert run(llmcodec, "--help", **there).strip() == usage()
    assert time.perf_counter() - start < 3, "ten times the promise: other processes may be busy"
    run(llmcodec, "encode", "--codec", "mini", "--input", clips, "--output", "tokens", **there)
    run(llmcodec, "decode", "--codec", "mini", "--input", "tokens", "--output", "audio", **there)
    assert len(soundfile.read(tmp_path / "audio/a.wav")[0]) == len(tone)
    command = (llmcodec, "evaluate", "reconstruction", "--reference", clips, "--estimate", "audio")
    assert "mel" in run(*command, **there)
    code = (
        "import llmcodec_jax, sys; llmcodec_jax.load_codec('mini');"
        f"sys.exit(','.join(m for m in {TRAINING_ONLY} if m in sys.modules) or 0)"
    )
    run(python, "-c", code, **there)
    needs = subprocess.run([llmcodec, "train"], capture_output=True, text=True, **there)
    assert needs.returncode == 2
    assert "llmcodec-jax[train]" in needs.stderr
