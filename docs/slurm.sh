#!/bin/bash
# A training on SLURM that requeues itself until it is complete: sbatch --nodes=8 docs/slurm.sh
# Set variables to change it: RUN=runs/g PRESET=jit-g16-256 EXTRA="--parallel fsdp" sbatch --nodes=8 docs/slurm.sh
#SBATCH --job-name=justimage
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300

PRESET=${PRESET:-jit-b16-256}
DATA=${DATA:-stores/imagenet-256} # made by justimage prepare; like RUN, on a file system that all nodes see
RUN=${RUN:-runs/$PRESET}
NPROC=${NPROC:-gpu}               # processes per node
EXTRA=${EXTRA:-}                  # more options of justimage train, as justimage plan prints them
RESTARTS=${RESTARTS:-10}          # by torchrun after a crash, without SLURM
PORT=${PORT:-29500}
NODES=${SLURM_JOB_NUM_NODES:-1}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-270} # seconds after SIGTERM; torchrun's default of 30 is short

set -u
stop=$RUN/STOP
mine="requeue of job $SLURM_JOB_ID"
read -ra extra <<<"$EXTRA"

# Remove a STOP that this job left behind when it was killed; obey any other.
[ "$(cat "$stop" 2>/dev/null)" = "$mine" ] && rm -f "$stop"

# Five minutes before the time limit (USR1): all ranks stop after the same step and save.
asked= task=
ask() {
    asked=yes
    if [ -d "$RUN" ]; then
        [ -e "$stop" ] || echo "$mine" >"$stop"
    elif [ "$task" ]; then
        kill -TERM "$task" # the run has not started
    fi
}
trap ask USR1

head=$(scontrol show hostnames "${SLURM_JOB_NODELIST:-localhost}" | head -n 1)
# srun of Slurm 22.05 and later does not take --cpus-per-task from sbatch, and would bind all to one core
srun --nodes="$NODES" --ntasks-per-node=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} --kill-on-bad-exit=1 \
    torchrun --nnodes="$NODES" --nproc-per-node="$NPROC" --max-restarts="$RESTARTS" \
    --rdzv-backend=c10d --rdzv-endpoint="$head:$PORT" --rdzv-id="$SLURM_JOB_ID" \
    -m justimage train --preset "$PRESET" --data "$DATA" --out "$RUN" ${extra[@]+"${extra[@]}"} &
task=$!

# A signal interrupts `wait`, not the task.
while :; do
    wait "$task"
    code=$?
    kill -0 "$task" 2>/dev/null || break
done

if [ "$asked" ]; then
    if [ "$(cat "$stop" 2>/dev/null)" = "$mine" ]; then
        rm -f "$stop"
    elif [ -e "$stop" ]; then
        exit "$code" # a user asked to stop, too: the job ends
    fi
    scontrol requeue "$SLURM_JOB_ID" # a complete run ends with 0 when it is started again
fi
exit "$code"
