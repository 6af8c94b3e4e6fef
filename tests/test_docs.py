"""The documentation builds, its links lead somewhere, its tour runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(ROOT.glob("docs/**/*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]
WIDTH = 120
README_LINES = 150


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_lines_fit(path):
    lines = path.read_text().splitlines()
    assert not [f"{i}: {line}" for i, line in enumerate(lines, 1) if len(line) > WIDTH]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path):
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text())
    local = [target for target in targets if not target.startswith(("http:", "https:"))]
    assert not [target for target in local if not (path.parent / target).exists()]


def test_files_and_commands_that_pages_name_exist():
    """Pages name `training/step.py` and `python -m llmcodec_jax.X` as they are today."""
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "llmcodec_jax").rglob("*.py")}
    missing = []
    for path in TEXTS:
        text = path.read_text()
        for command in re.findall(r"python -m (llmcodec_jax[\w.]*)", text):
            place = command.replace(".", "/")
            if not {f"{place}.py", f"{place}/__main__.py"} & modules:
                missing.append(f"{path.name}: python -m {command}")
        for name in re.findall(r"`((?:[\w-]+/)+[\w-]+\.(?:py|json|sh))`", text):
            if "NAME" not in name and not any(
                (ROOT / folder / name).exists() for folder in (".", "llmcodec_jax")
            ):
                missing.append(f"{path.name}: {name}")
    assert not missing


def test_sections_that_docstrings_name_exist():
    sections = set(re.findall(r"^## (\d+)\.", (ROOT / "docs/method.md").read_text(), re.MULTILINE))
    for path in (ROOT / "llmcodec_jax").rglob("*.py"):
        for listed in re.findall(r"method\.md ([\d, -]+\d|\d)", path.read_text()):
            assert set(re.findall(r"\d+", listed)) <= sections, path


def tour() -> str:
    """The notebook's code cells as one program."""
    cells = json.loads((ROOT / "docs/tour.ipynb").read_text())["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


@pytest.mark.slow
def test_the_tour_runs(tmp_path):
    code = "import matplotlib; matplotlib.use('Agg')\n" + tour()
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, env=environment(), timeout=600
    )
    assert {p.name for p in tmp_path.iterdir()} == {"original.wav", "decoded.wav"}


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment())
    assert result.returncode == 0, result.stdout + result.stderr
    assert "load_codec" in (tmp_path / "api/index.html").read_text()


def environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
