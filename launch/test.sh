#!/usr/bin/env bash
# Makes the environment if need be, checks style and types and runs the tests.
# Arguments go to pytest: `bash launch/test.sh -m slow` runs the slow ones. TEST_PROCESSES says
# how many run at once (each takes up to 6 GB).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" # the suite is written for CPUs, simulated devices included
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m ty check --python "$PYTHON"
exec "$PYTHON" -m pytest --numprocesses "${TEST_PROCESSES:-2}" --dist loadscope "$@"
