#!/usr/bin/env bash
# Compiles the paper's step for every slice that has a config, and prints the tables of docs/pods.md:
#   bash launch/compile_reports.sh [FOLDER]     (default: compile-reports; reports that exist stay)
# Needs libtpu at $TPU_LIBRARY_PATH (see llmcodec_jax/compile_check.py); minutes for each.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

folder="${1:-compile-reports}"
mkdir -p "$folder"
for pair in v5e_16=v5e:4x4 v5p_8=v5p:2x2x1 v6e_16=v6e:4x4 v6e_16_large=v6e:4x4 tpu7x_8=tpu7x:2x2x1; do
  name="${pair%%=*}"
  [ -f "$folder/$name.json" ] && continue
  echo "== $name on ${pair#*=}"
  "$PYTHON" -m llmcodec_jax.compile_check --config "configs/$name.py" --topology "${pair#*=}" \
    --output "$folder/$name.json" --scaling || echo "$name: status $?" >&2
done
