#!/usr/bin/env bash
# Training on every host of a Cloud TPU slice, started from your own machine:
#
#   gcloud compute tpus tpu-vm create alexnet --zone=us-west4-a --accelerator-type=v5litepod-16 \
#     --version=v2-alpha-tpuv5-lite
#   launch/tpu.sh alexnet us-west4-a experiments/imagenet.py:source /mnt/shared/runs/source \
#     --config.batch_size=1024 --config.model.compute_dtype=bfloat16
#
# JAX finds the hosts of the slice by itself. They need the project in ~/alexnet_jax with its
# environment (`make .venv`, then `.venv/bin/pip install 'jax[tpu]'`), and the workdir on a file system
# that all of them have mounted (Filestore, or a bucket through gcsfuse).
# DRY_RUN=1 prints the command instead of running it.
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
