#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU and starts again where the run was cut off.
#
#   scripts/tpu_pod.sh --name my-pod --zone us-west4-a [--starts 20] [--dry-run]
#       -- --config configs/resnet.py:noah_resnet50 --workdir gs://bucket/runs/noah_resnet50
#
# The TPU must exist, with this repository under ~/noah_jax on every host, installed by
# `pip install -e '.[tpu]'`. All hosts run the same command and find one another. If the code is 75
# or above 128 (a crash, but not 130, which is Ctrl-C) every host starts the command again, at most
# --starts times.
set -euo pipefail

usage() {
  echo "error: $1; $0 --help tells more" >&2
  exit 2
}

help() { # the lines at the top of this file
  sed -n '2,/^set /{/^#/s/^#\( \|$\)//p}' "$0"
  exit 0
}

name='' zone='' starts=20 dry_run=0
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    --name | --zone | --starts)
      [[ $# -ge 2 ]] || usage "$1 needs a value"
      declare "${1#--}=$2"
      shift
      ;;
    --dry-run) dry_run=1 ;;
    -h | --help) help ;;
    *) usage "unknown option $1" ;;
  esac
  shift
done
[[ $# -gt 1 ]] || usage "the arguments of noah_jax.train must follow after --"
shift
[[ -n $name && -n $zone ]] || usage "--name and --zone say which TPU"
[[ $starts =~ ^[0-9]+$ ]] || usage "--starts must be a number, got '$starts'"

# Every host starts its own process again, because all processes end when one is gone.
# The flags let the all-reduces of gradients overlap with the backward pass, whatever their sizes.
# This helps most if the chips belong to several slices. LIBTPU_INIT_ARGS on the hosts replaces them.
flags="--xla_tpu_enable_data_parallel_all_reduce_opt=true"
flags+=" --xla_tpu_data_parallel_opt_different_sized_ops=true"
loop="export LIBTPU_INIT_ARGS=\"\${LIBTPU_INIT_ARGS-$flags}\"
cd ~/noah_jax && for start in \$(seq 0 $starts); do
  code=0; python3 -m noah_jax.train$(printf ' %q' "$@") || code=\$?
  [ \$code -eq 75 ] || { [ \$code -gt 128 ] && [ \$code -ne 130 ]; } || exit \$code
  echo \"start \$start ended with code \$code\"; sleep 30
done; exit \$code"
ssh=(gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all --command "$loop")
if ((dry_run)); then
  printf '%q ' "${ssh[@]}" && echo
else
  "${ssh[@]}"
fi
