#!/usr/bin/env bash
# All checks that want a GPU, one after the other: tests, throughput, goal, the claims (table, views, improvements, sizes,
# ...), step, clustering, bounded, evidence.
#
# NOT RUN YET: no GPU was at hand when this was written. No figure of this project comes from it.
#
#     benchmarks/gpu.sh [DATA]        DATA: CIFAR-10 as parquet; default ../shared/data/cifar10
#     STAGES="evidence" SEEDS=1 MINUTES=6 benchmarks/gpu.sh
#
# Views and table want lightly (pip install --no-deps lightly, or its wheel on PYTHONPATH).
# Runs with the machine's own Python (PYTHON=...), the project from src/. Each stage stays under about nine
# minutes: evidence is one run of MINUTES minutes of training and its probes, with a complete schedule.
set -euo pipefail
cd "$(dirname "$0")/.."

data=${1:-../shared/data/cifar10}
python=${PYTHON:-python3}
stages=${STAGES:-"tests throughput goal table views sizes step clustering bounded evidence"}
seeds=${SEEDS:-0}
minutes=${MINUTES:-6}
results=${OUT:-benchmarks/results}
traces=${OUT:-runs}/traces # large, and no results
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
    throughput)
        mkdir -p "$traces"
        for flags in "" "--compile"; do
            timeout 280 "$python" benchmarks/throughput.py --device cuda --precision bf16-mixed --batch-size 512 \
                --pairs 5 $flags --profile "$traces/throughput${flags}.json" \
                --out "$results/throughput-cuda${flags:+-compiled}.json"
        done
        ;;
    table | views | improvements | sizes | batch | variance | batch-size | decoupling | deep | study | auto | jpeg)
        # MINUTES bounds each contender; a run whose result is there is not run again, so that pieces add up
        timeout 580 "$python" benchmarks/claims.py "$stage" --scale full --data "$data" --seeds "$seeds" \
            --minutes "$minutes" || [ $? = 124 ]
        ;;
    goal)
        timeout 590 "$python" benchmarks/evidence.py --scale full --views 2 --tag goal --seeds "$seeds" --data "$data" \
            --runs "$results/../../runs/evidence" --out "$results/evidence-goal.json" \
            precision=bf16-mixed compile=true batch_size=512 learning_rate=0.24 max_minutes="$minutes" \
            objective.turning=1 objective.decorrelation=0.1 count_carry=0.5 knn_every=50
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
        echo "unknown stage $stage" >&2
        exit 2
        ;;
    esac
done
