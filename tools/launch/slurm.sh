#!/bin/bash
#SBATCH --job-name=prompt-jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --signal=TERM@180
# One run on the nodes of a SLURM job: a process a node, with all GPUs that it sees.
#
#   sbatch --nodes=4 --gpus-per-node=8 --time=12:00:00 tools/launch/slurm.sh \
#     --gin_file=models/t5_1_1_xl.gin --gin_file=methods/prompt_tuning.gin \
#     --gin_file=runs/prompt_tune.gin --gin.MODEL_DIR="'/shared/out/xl'" ...
#
# 180 seconds before the time limit, and on preemption, the processes get SIGTERM, save after the
# same step and exit with 143; the job is then queued again and the same command goes on.

trap : TERM # this shell outlives the signal; what it starts does not inherit that

code=0
srun --kill-on-bad-exit=0 prompt-jax train "$@" || code=$?

if ((code == 143)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
