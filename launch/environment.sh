# shellcheck shell=bash
# Sourced by the other scripts: makes or reuses the Python environment and sets $PYTHON.
#
# An environment that is already active (or $PYTHON) is used as it is if it has what
# requirements.txt asks for; otherwise .venv is created beside this folder. Needs Python 3.11 or
# 3.12 with venv; no root, no compiler.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$ROOT" || exit 1

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" python3.12 python3.11 python3 python; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return 0
    fi
  done
  echo "Python 3.11 or newer is needed; none was found on the PATH." >&2
  return 1
}

satisfied() { # does this Python have everything requirements.txt asks for?
  "$1" - requirements.txt <<'PY' 2>/dev/null
import sys
from importlib.metadata import PackageNotFoundError, version
try:
    from packaging.requirements import Requirement
except ImportError:
    sys.exit(1)
for line in open(sys.argv[1]):
    line = line.split("#")[0].strip()
    if line:
        requirement = Requirement(line)
        try:
            if not requirement.specifier.contains(version(requirement.name), prereleases=True):
                sys.exit(1)
        except PackageNotFoundError:
            sys.exit(1)
PY
}

PYTHON="$(find_python)" || exit 1
if ! satisfied "$PYTHON"; then
  if [ ! -x .venv/bin/python ]; then
    echo "Creating .venv with $("$PYTHON" --version)"
    "$PYTHON" -m venv .venv || {
      echo "venv failed; on Debian and Ubuntu it is in the package python3-venv." >&2
      exit 1
    }
  fi
  PYTHON="$ROOT/.venv/bin/python"
  if ! satisfied "$PYTHON"; then
    echo "Installing requirements.txt into .venv (a few minutes the first time)"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check packaging -r requirements.txt || exit 1
    # PESQ comes as source alone: where there is no C compiler the metric is reported as absent.
    "$PYTHON" -m pip install --quiet --disable-pip-version-check pesq >/dev/null 2>&1 ||
      echo "pesq could not be built (it needs a C compiler); everything else works without it"
  fi
fi
export PYTHON

# XLA on CPUs asks for a program's memory anew in every call: in pages of 2 MB, where Linux and
# glibc have them, a training step takes a seventh less (docs/measurements.md).
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
