#!/usr/bin/env bash
# Trains on a SLURM cluster with one process per GPU (or node), and queues itself again to go on.
#
#   scripts/slurm.sh --nodes 2 --gpus 8 [--per-node] [--time 24:00:00] [--starts 20] [--dry-run]
#       -- --config configs/resnet.py:noah_resnet50 --workdir /shared/runs/noah_resnet50
#
# The workdir must be on a file system that all nodes share. SLURM sends SIGTERM two minutes
# before the time is up. The run then saves and exits with 75, and the next job goes on. A job is
# also queued after a crash (a code above 128), at most --starts times, but not after an error (1) or
# Ctrl-C (130).
set -euo pipefail

usage() {
  echo "error: $1; $0 --help tells more" >&2
  exit 2
}

help() { # the lines at the top of this file
  sed -n '2,/^set /{/^#/s/^#\( \|$\)//p}' "$0"
  exit 0
}

nodes=1 gpus='' per_node=0 time=24:00:00 starts=20 dry_run=0
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    --nodes | --gpus | --time | --starts)
      [[ $# -ge 2 ]] || usage "$1 needs a value"
      declare "${1#--}=$2"
      shift
      ;;
    --per-node) per_node=1 ;;
    --dry-run) dry_run=1 ;;
    -h | --help) help ;;
    *) usage "unknown option $1" ;;
  esac
  shift
done
[[ $# -gt 1 ]] || usage "the arguments of noah_jax.train must follow after --"
shift
[[ $gpus =~ ^[1-9][0-9]*$ ]] || usage "--gpus, the GPUs of a node, must be a number, got '$gpus'"
[[ $nodes =~ ^[1-9][0-9]*$ ]] || usage "--nodes must be a number, got '$nodes'"
[[ $starts =~ ^[0-9]+$ ]] || usage "--starts must be a number, got '$starts'"

tasks=$gpus
((per_node)) && tasks=1
again=("$0" --nodes "$nodes" --gpus "$gpus" --time "$time" --starts $((starts - 1)))
((per_node)) && again+=(--per-node)
job=$(
  cat <<JOB
#!/usr/bin/env bash
#SBATCH --job-name=noah_jax
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$tasks
#SBATCH --gpus-per-node=$gpus
#SBATCH --time=$time
#SBATCH --signal=TERM@120
cd $(printf %q "$PWD")
# Exchanges gradients while the backward pass goes on.
export XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true \${XLA_FLAGS:-}"
# No other process uses the GPU; by default JAX takes only three quarters of its memory.
export XLA_PYTHON_CLIENT_MEM_FRACTION=\${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}
code=0
srun --kill-on-bad-exit=0 python -m noah_jax.train$(printf ' %q' "$@") || code=\$?
echo "noah_jax.train ended with code \$code"
if ((code == 75 || (code > 128 && code != 130))) && (($starts > 0)); then
  $(printf '%q ' "${again[@]}" -- "$@")
fi
exit \$code
JOB
)
if ((dry_run)); then
  echo "$job"
else
  sbatch <<<"$job"
fi
