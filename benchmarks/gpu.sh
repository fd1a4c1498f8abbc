#!/usr/bin/env bash
# All checks that want a GPU, one after the other: tests, step, clustering, bounded, evidence.
#
# NOT RUN YET: no GPU was at hand when this was written. No figure of this project comes from it.
#
#     benchmarks/gpu.sh [DATA]        DATA: CIFAR-10 as parquet; default ../shared/data/cifar10
#     STAGES="evidence" SEEDS=1 MINUTES=6 benchmarks/gpu.sh
#
# Runs with the machine's own Python (PYTHON=...), the project from src/. Each stage stays under about nine
# minutes: evidence is one run of MINUTES minutes of training and its probes, with a complete schedule.
set -euo pipefail
cd "$(dirname "$0")/.."

data=${1:-../shared/data/cifar10}
python=${PYTHON:-python3}
stages=${STAGES:-"tests step clustering bounded evidence"}
seeds=${SEEDS:-0}
minutes=${MINUTES:-6}
results=${OUT:-benchmarks/results}
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"

"$python" -c 'import torch; assert torch.cuda.is_available(), "no CUDA device"; print(torch.cuda.get_device_name())'

for stage in $stages; do
    echo "== $stage"
    case $stage in
    tests)
        timeout 540 "$python" -m pytest -m gpu -p no:cacheprovider
        ;;
    step)
        for precision in 32-true bf16-mixed; do
            timeout 260 "$python" benchmarks/step.py --device cuda --precision "$precision" --batch-size 512 \
                --out "$results/step-cuda-$precision.json"
        done
        ;;
    clustering)
        timeout 300 "$python" benchmarks/clustering.py --device cuda --out "$results/clustering-cuda.json"
        ;;
    bounded)
        for precision in highest high; do
            timeout 560 "$python" benchmarks/bounded_gpu.py --precision "$precision" \
                --out "$results/bounded-cuda-$precision.json"
        done
        ;;
    evidence)
        timeout 560 "$python" benchmarks/evidence.py --scale full --views 1 --seeds "$seeds" --data "$data" \
            --runs "$results/../../runs/evidence" --out "$results/evidence-1view-full.json" \
            precision=bf16-mixed max_minutes="$minutes"
        ;;
    *)
        echo "unknown stage $stage: tests, step, clustering, bounded, evidence" >&2
        exit 2
        ;;
    esac
done
