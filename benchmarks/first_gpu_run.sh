#!/usr/bin/env bash
# Run once on a new GPU machine, in about half an hour: the GPU tests, the speed of training and of sampling, and a model
# trained, sampled and scored. Everything is written into one folder, with report.md to send back.
#
#   benchmarks/first_gpu_run.sh                       digits instead of CIFAR-10
#   benchmarks/first_gpu_run.sh --data cifar10.zip    a folder or zip with train/CLASS/*.png
#   benchmarks/first_gpu_run.sh --rehearse            the same steps on a CPU, with a tiny network, in some minutes
set -u
cd "$(dirname "$0")/.." || exit 1
usage() { sed -n '2,8s/^# \{0,1\}//p' benchmarks/first_gpu_run.sh; }

data=digits out=gpu-report rehearse=
while [ $# -gt 0 ]; do
  case $1 in
    --data) data=${2:?--data needs a folder or a zip}; shift ;;
    --out) out=${2:?--out needs a folder}; shift ;;
    --rehearse) rehearse=yes ;;
    -h | --help) usage; exit 0 ;;
    *) echo "first_gpu_run.sh: unknown option $1; see --help" >&2; exit 2 ;;
  esac
  shift
done
if [ "$data" != digits ] && [ ! -e "$data" ]; then echo "first_gpu_run.sh: $data does not exist" >&2; exit 2; fi
if [ -e "$out" ]; then echo "first_gpu_run.sh: $out exists; give another folder: --out FOLDER" >&2; exit 2; fi
for command in python justimage pytest; do
  command -v $command >/dev/null || { echo "first_gpu_run.sh: no $command; pip install -c constraints.txt -e '.[test]'" >&2; exit 2; }
done
if [ -z "$rehearse" ] && ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "first_gpu_run.sh: PyTorch finds no GPU; --rehearse runs the same steps on a CPU" >&2
  exit 2
fi
mkdir -p "$out"
report=$out/report.md

# step TITLE SECONDS COMMAND...: run COMMAND, with its output and time in the report; a failure or a timeout does not stop the rest
step() {
  local title=$1 limit=$2 began=$SECONDS code
  shift 2
  printf '%s ...\n' "$title"
  { printf '\n## %s\n\n`%s`\n\n```\n' "$title" "$*"; } >>"$report"
  timeout --signal=INT --kill-after=60 "$limit" "$@" >"$out/last.log" 2>&1
  code=$?
  { tail -n 60 "$out/last.log"; printf '```\n\nexit code %s after %s s%s\n' "$code" "$((SECONDS - began))" \
    "$([ $code = 124 ] && echo ", ended after its $limit s")"; } >>"$report"
  cat "$out/last.log" >>"$out/all.log"
  tail -n 3 "$out/last.log" | sed 's/^/    /'
}

if [ -n "$rehearse" ]; then
  device=cpu networks='T/8' batches=8 train_time=60 images=640 count=64 classifier=2000 options=(--no-compile)
else
  device=cuda networks='B/16 L/16 H/16' batches='32 128' train_time=600 images=20000000 count=10000 classifier=300000 options=()
fi
{
  printf '# First run on a GPU\n\n'
  printf '%s, justimage %s, commit %s%s\n' "$(date -u +%F)" "$(justimage --version)" \
    "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" "${rehearse:+, rehearsed on a CPU}"
} >"$report"

step 'The machine' 60 bash -c 'nvidia-smi 2>/dev/null; lscpu | grep -E "Model name|^CPU\(s\)"; free -g | head -2; df -h . | tail -1; python -m torch.utils.collect_env | grep -E "PyTorch version|CUDA|cuDNN|Python version|Nvidia|GPU"'
step 'GPU tests' 600 pytest -n 0 -m gpu
# shellcheck disable=SC2086
step 'Training' 480 python benchmarks/train.py --networks $networks --batches $batches --recompute no --device $device ${rehearse:+--precision fp32 --compile no --steps 3}
# shellcheck disable=SC2086
step 'Sampling' 240 python benchmarks/sample.py --networks $networks --batches 1 64 --device $device ${rehearse:+--steps 4 --repeat 1}
step 'Host time of a step' 120 env OMP_NUM_THREADS=1 python benchmarks/overhead.py
if [ "$data" = digits ]; then preset=digits; [ -n "$rehearse" ] || images=100000; else preset=folder-32; fi
train=(justimage train --preset $preset --data "$data" --total-images $images --device $device --out "$out/run" ${options[@]+"${options[@]}"})
step 'A model, trained' "$train_time" "${train[@]}"
step 'The same command again: it resumes, or says that the run is complete' 90 "${train[@]}"
step 'Samples' 120 justimage sample --from "$out/run" --device "$device" --out "$out/grid.png"
step 'A feature space' 300 justimage feature-space train --data "$data" --image-size 32 --images "$classifier" --device "$device" --out "$out/features.safetensors"
step 'Scores' 300 justimage evaluate "$out/run" --features "$out/features.safetensors" --count "$count" --device "$device" --out "$out/scores"
{
  printf '\n## Metrics of the training\n\n```\n'
  head -n 3 "$out/run/metrics.jsonl"; printf '...\n'; tail -n 3 "$out/run/metrics.jsonl"
  printf '```\n\n```\n'; cat "$out/run/events.jsonl"; printf '```\n'
} >>"$report" 2>/dev/null
rm -f "$out/last.log"
printf '\n%s is the report; grid.png, scores and run are beside it. Its numbers belong in benchmarks/RESULTS.md.\n' "$report"
