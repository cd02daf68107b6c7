#!/usr/bin/env bash
# The towers over two nodes of eight GPUs, one process a GPU, on Slurm:
#
#   sbatch launch/slurm.sh experiments/imagenet.py:source runs/source --config.batch_size=1024
#
# Slurm tells each process who takes part. The folder of the run and the project must be on a file
# system that all nodes see. A run that was cut short, or whose time is over, resumes when the same
# command is submitted again.
#SBATCH --job-name=alexnet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-task=1
#SBATCH --gpu-bind=none
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail
config=$1 workdir=$2
shift 2

# One process lost ends the run (config.distributed.lost_after_seconds); so must the others' tasks.
srun --kill-on-bad-exit=1 .venv/bin/python -m alexnet_jax train \
  --config="$config" --workdir="$workdir" --config.distributed.enabled=True "$@"
