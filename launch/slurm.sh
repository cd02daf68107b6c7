#!/usr/bin/env bash
# Training on two nodes of eight GPUs with Slurm, one process per GPU:
#
#   sbatch launch/slurm.sh experiments/imagenet.py:source runs/source --config.batch_size=1024
#
# Slurm tells the processes about each other. The workdir and the project must be on a file system
# that all nodes see. A run that was interrupted, or whose time limit was reached, resumes when the
# same command is submitted again.
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

# If a process is lost, the run ends (config.distributed.lost_after_seconds), and so must all tasks.
srun --kill-on-bad-exit=1 .venv/bin/python -m alexnet_jax train \
  --config="$config" --workdir="$workdir" --config.distributed.enabled=True "$@"
