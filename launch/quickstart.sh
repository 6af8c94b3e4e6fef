#!/usr/bin/env bash
# Trains a small codec on real speech under every objective of the method: about a quarter of an
# hour on two CPU cores. Run it again to resume. Arguments go to the trainer:
#   bash launch/quickstart.sh --workdir runs/mine --config.total_steps=1200
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

workdir=runs/quickstart
for ((i = 1; i <= $#; i++)); do
  case "${!i}" in
    --workdir=*) workdir="${!i#*=}" ;;
    --workdir) next=$((i + 1)); workdir="${!next}" ;;
  esac
done

"$PYTHON" -m llmcodec_jax.train --config configs/quickstart.py --workdir "$workdir" "$@"
echo
echo "Open $workdir/report.html in a browser to look and listen."
