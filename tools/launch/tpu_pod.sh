#!/bin/bash
# One run on every host of a TPU pod slice; the processes find each other by themselves.
#
#   TPU=my-v5e-64 ZONE=us-west4-a DIR=prompt_jax tools/launch/tpu_pod.sh \
#     --gin_file=models/t5_1_1_xl.gin --gin_file=methods/prompt_tuning.gin \
#     --gin_file=runs/prompt_tune.gin --gin.MODEL_DIR="'gs://my-bucket/xl'" ...
#
# DIR: where the project is installed on each host, with its venv in DIR/.venv (or PATH has it).
# RESTARTS: how often a run that did not finish is started again (the same command goes on).
# To stop it, one SIGTERM to one host is enough; all save after the same step:
#   gcloud compute tpus tpu-vm ssh $TPU --zone=$ZONE --worker=0 --command='pkill -TERM -f bin/prompt-jax'
set -euo pipefail
: "${TPU:?the name of the TPU}" "${ZONE:?its zone}"

arguments=$(printf ' %q' "$@")
command="cd ${DIR:-.} && PATH=\$PWD/.venv/bin:\$PATH && prompt-jax train$arguments"

for ((left = ${RESTARTS:-0}; ; left--)); do
  code=0
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$command" || code=$?
  # 0: done. 2: the input is wrong, which no restart mends.
  if ((code == 0 || code == 2 || left <= 0)); then exit "$code"; fi
  echo "ended with $code; going on ($left restarts left)" >&2
  sleep 10
done
