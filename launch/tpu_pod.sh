#!/usr/bin/env bash
# Trains on a Cloud TPU slice: creates or reuses it, copies the project there, runs the trainer
# on all of its hosts, streams their logs, and starts again after a preemption.
#   NAME=codec ZONE=us-east5-b TYPE=v6e-16 bash launch/tpu_pod.sh \
#     --config configs/v6e_16.py --workdir runs/first --config.log.checkpoint_dir=gs://BUCKET/first
# Needs the gcloud command, signed in, with a default project. Costs money from the moment the
# slice exists: `DELETE=1` removes it at the end. Checkpoints must go where all hosts reach, and where
# they outlive the slice: a bucket. Metrics and the report lie on the slice's first host.
#
#   NAME      the slice's name; one that exists is reused
#   ZONE      where it is
#   TYPE      accelerator type: v5litepod-16, v5p-8, v6e-16, ...; of several ("v6e-16 v6e-8") the
#             first that can be had, anew at every start: a run goes on where it stopped on fewer
#             hosts (the devices must divide data.batch_size)
#   VERSION   software version (default: what suits the type)
#   SPOT      1: cheaper, may be taken away at any time (default 0)
#   RETRIES   starts after failures before giving up (default 20); a run that was interrupted and
#             has saved (status 75) goes on without counting, one that was asked for something
#             impossible (status 2) ends at once
#   PAUSE     seconds between two starts (default 60)
#   DELETE    1: delete the slice when the run has ended (default 0)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${NAME:?the name of the slice}" "${ZONE:?its zone}" "${TYPE:?its accelerator type}"
version() { # the software that suits a type
  case "$1" in
    v6e*) echo v2-alpha-tpuv6e ;;
    v5p*) echo v2-alpha-tpuv5 ;;
    v5lite*) echo v2-alpha-tpuv5-lite ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}
tpu() { gcloud compute tpus tpu-vm "$@" --zone "$ZONE"; }
state() { tpu describe "$NAME" --format='value(state)' 2>/dev/null || true; }

# LIBTPU_INIT_ARGS, each for hiding communication behind computation:
libtpu=(
  --xla_tpu_enable_async_collective_fusion=true                  # collectives run inside products
  --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true  # the layers' weights among them
  --xla_tpu_enable_async_collective_fusion_multiple_steps=true   # over several products if need be
  --xla_tpu_overlap_compute_collective_tc=true                   # let both use the core at once
  --xla_enable_async_all_gather=true                             # fetch the next layer early
)

ensure() { # a slice that is READY
  case "$(state)" in
    READY) return 0 ;;
    "") ;;
    *) tpu delete "$NAME" --quiet || true ;; # PREEMPTED, TERMINATED, ...: useless now
  esac
  local spot=() type
  [ "${SPOT:-0}" = 1 ] && spot=(--spot)
  for type in $TYPE; do
    tpu create "$NAME" --accelerator-type "$type" --version "${VERSION:-$(version "$type")}" \
      "${spot[@]}" && return
    echo "no $type at the moment" >&2
  done
  return 1
}

install() { # the project (as committed) and its requirements on every host
  local packed
  packed="$(mktemp -d)" || return
  git archive --format=tar.gz --output="$packed/llmcodec.tar.gz" HEAD &&
    tpu scp "$packed/llmcodec.tar.gz" "$NAME:" --worker=all || return
  rm -r "$packed"
  tpu ssh "$NAME" --worker=all --command='
    set -e; mkdir -p llmcodec; tar -xzf llmcodec.tar.gz -C llmcodec; cd llmcodec
    [ -d .venv ] || python3 -m venv .venv
    .venv/bin/pip install --quiet "jax[tpu]" -r requirements.txt'
}

train() { # the same command on every host; JAX finds the others through the TPU's metadata
  local arguments
  printf -v arguments '%q ' "$@"
  # A connection that broke leaves its trainer behind: it is asked to save and leave first.
  # Ctrl-C or a preemption notice reaches the trainers as SIGTERM or SIGHUP: they save and leave.
  tpu ssh "$NAME" --worker=all --command="
    cd llmcodec; export LLMCODEC_DISTRIBUTED=1
    export LIBTPU_INIT_ARGS='${libtpu[*]}'
    if [ -f trainer.pid ] && kill -TERM \$(cat trainer.pid) 2>/dev/null; then
      for i in \$(seq 180); do kill -0 \$(cat trainer.pid) 2>/dev/null || break; sleep 1; done
      kill -KILL \$(cat trainer.pid) 2>/dev/null
    fi
    echo \$\$ > trainer.pid
    exec .venv/bin/python -m llmcodec_jax.train $arguments"
}

status=1 failures=0
while :; do
  if ensure && install; then
    status=0
    train "$@" || status=$?
  else
    status=1
  fi
  case "$status" in
    0) break ;;
    2)
      echo "the trainer was asked for something impossible (see above)" >&2
      break
      ;;
    75) echo "saved, not finished (slice: $(state)); resuming" >&2 ;;
    *)
      failures=$((failures + 1))
      echo "failure $failures, status $status (slice: $(state))" >&2
      ((failures <= ${RETRIES:-20})) || break
      ;;
  esac
  sleep "${PAUSE:-60}"
done
if [ "${DELETE:-0}" = 1 ]; then
  tpu delete "$NAME" --quiet
fi
exit "$status"
