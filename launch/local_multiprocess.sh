#!/usr/bin/env bash
# Runs the trainer as N processes on this machine, joined as on a pod, with collectives over
# the loopback (CPU). For testing the real multi-process path.
#   bash launch/local_multiprocess.sh N --config configs/quickstart.py --workdir runs/two [...]
# Everything after N goes to the trainer; data.batch_size must be a multiple of N.
# When one process fails the others are ended and the script fails: run it again to resume. It ends
# with 75 if the run was asked to stop and has saved. Trainers end when this script is killed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

count="${1:?usage: local_multiprocess.sh N --config FILE [trainer arguments]}"
shift

export JAX_PLATFORMS=cpu # even where there is a GPU: N processes cannot share one
export JAX_COORDINATOR_ADDRESS="127.0.0.1:${PORT:-8476}" # where the processes find each other
export JAX_NUM_PROCESSES="$count"
export LLMCODEC_PEER_TIMEOUT="${LLMCODEC_PEER_TIMEOUT:-30}" # seconds until a silent peer is dead
export LLMCODEC_LAUNCHER=$$ # the trainers save and leave once this process is gone

pids=()
signal_all() { kill "-$1" "${pids[@]}" 2>/dev/null || true; }
trap 'signal_all TERM' TERM INT HUP # passed on: the trainer saves and leaves

for ((i = 0; i < count; i++)); do
  JAX_PROCESS_ID="$i" "$PYTHON" -m llmcodec_jax.train "$@" &
  pids+=("$!")
done

status=0 unfinished=0
while ((${#pids[@]})); do
  sleep 1 &
  wait "$!" || true # a builtin's wait, so that the trap above runs at once
  alive=()
  for pid in "${pids[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      alive+=("$pid")
    else
      code=0
      wait "$pid" || code=$?
      if ((code == 75)); then # saved, not finished: the others are about to say so too
        unfinished=75
      elif ((code != 0 && status == 0)); then
        echo "process $pid ended with status $code; ending the others" >&2
        status="$code"
      fi
    fi
  done
  pids=("${alive[@]}")
  if ((status != 0)); then
    signal_all KILL # they wait for it inside a collective and cannot hear anything softer
  fi
done
exit "$((status ? status : unfinished))"
