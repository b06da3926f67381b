#!/usr/bin/env bash
# Copies a prepared dataset to a local disk of this machine or of every host of a Cloud TPU, from gs://
# or from another folder that the machine sees.
#
#   scripts/stage_data.sh --from gs://bucket/tfds --set imagenet2012 --to /mnt/disks/data
#       [--name my-pod --zone us-west4-a] [--dry-run]
#
# Without --name and --zone it copies to this machine. Every host needs the whole dataset, because
# the order of the images is drawn anew in every epoch. Started again it copies what is missing or
# differs, and checks the rest. It does not start if the dataset does not fit on the disk. Train with
# --config.data.dir=/mnt/disks/data afterwards.
set -euo pipefail

usage() {
  echo "error: $1; $0 --help tells more" >&2
  exit 2
}

help() { # the lines at the top of this file
  sed -n '2,/^set /{/^#/s/^#\( \|$\)//p}' "$0"
  exit 0
}

from='' to='' set='' name='' zone='' dry_run=0
while [[ $# -gt 0 ]]; do
  case $1 in
    --from | --to | --set | --name | --zone)
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
[[ $from == gs://* || $from == /* ]] ||
  usage "--from, a folder of TFDS sets, must start with gs:// or /, got '$from'"
[[ $to == /* ]] || usage "--to, a local folder, must start with /, got '$to'"
[[ $set =~ ^[A-Za-z0-9_]+$ ]] || usage "--set, such as imagenet2012, must be a name, got '$set'"
[[ -n $name && -n $zone || -z $name$zone ]] || usage "--name and --zone are needed together"

# Runs on every host; $source and $target are quoted for the shell there.
source=$(printf %q "${from%/}/$set") target=$(printf %q "${to%/}/$set")
if [[ $from == gs://* ]]; then
  measure="gcloud storage du --summarize $source"
  transfer="gcloud storage rsync --recursive $source $target"
else
  measure="du --summarize --bytes $source"
  # A file that an interrupted copy left is newer than its source, so the bytes are compared.
  transfer="cd $source && find . -type f -exec sh -c \\
  'cmp --silent \"\$1\" \"\$0/\$1\" || cp --parents \"\$1\" \"\$0\"' $target {} \\;"
fi
copy="set -e
mkdir -p $target
size=\$($measure | awk '{print \$1}')
here=\$(du --summarize --bytes $target | awk '{print \$1}')
free=\$(df --block-size=1 --output=avail $target | tail -n 1)
if [ -z \"\$size\" ] || [ \"\$size\" -eq 0 ]; then
  echo \"error: \$(hostname): $source holds nothing\" >&2; exit 1
fi
if [ \$((size - here)) -gt \"\$free\" ]; then
  echo \"error: \$(hostname): $target has \$free bytes free, $source needs \$((size - here)) more\" >&2
  exit 1
fi
$transfer
echo \"\$(hostname): $target is complete, \$size bytes\""
command=(bash -c "$copy")
if [[ -n $name ]]; then
  command=(gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all --command "$copy")
fi
if ((dry_run)); then
  if [[ -n $name ]]; then printf '%q ' "${command[@]}" && echo; else echo "$copy"; fi
else
  "${command[@]}"
  echo "train with --config.data.dir=$to"
fi
