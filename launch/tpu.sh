#!/usr/bin/env bash
# On every host of a Cloud TPU slice, from your own machine:
#
#   gcloud compute tpus tpu-vm create alexnet --zone=us-west4-a --accelerator-type=v5litepod-16 \
#     --version=v2-alpha-tpuv5-lite
#   launch/tpu.sh alexnet us-west4-a experiments/imagenet.py:source /mnt/shared/runs/source \
#     --config.batch_size=1024 --config.model.compute_dtype=bfloat16
#
# The hosts tell each other who takes part. They need the project in ~/alexnet_jax with its
# environment (`make .venv`, then `.venv/bin/pip install 'jax[tpu]'`), and the folder of the run on a
# file system that all of them have mounted (Filestore, or a bucket through gcsfuse).
# DRY_RUN=1 prints the command in place of running it.
set -euo pipefail
name=$1 zone=$2 config=$3 workdir=$4
shift 4

remote="cd ~/alexnet_jax && .venv/bin/python -m alexnet_jax train"
remote+="$(printf ' %q' "--config=$config" "--workdir=$workdir" --config.distributed.enabled=True "$@")"
command=(gcloud compute tpus tpu-vm ssh "$name" "--zone=$zone" --worker=all "--command=$remote")
if [[ -n "${DRY_RUN:-}" ]]; then
  printf '%q ' "${command[@]}" && echo
else
  exec "${command[@]}"
fi
