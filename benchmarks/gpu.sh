#!/usr/bin/env bash
# All checks that want a GPU, one after the other: tests, throughput, goal, the claims (views, table, improvements, sizes,
# ...), step, clustering, bounded, evidence.
#
# NOT RUN YET: no GPU was at hand when this was written. No figure of this project comes from it.
#
#     benchmarks/gpu.sh [DATA]                          DATA: CIFAR-10 as parquet; default ../shared/data/cifar10
#     STAGES=goal MINUTES=4 benchmarks/gpu.sh DATA
#     STAGES=views MINUTES=1.5 benchmarks/gpu.sh DATA   MINUTES is of each contender
#
# Runs with the machine's own Python (PYTHON=...), the project from src/. Tests want pytest and hypothesis, views and table
# lightly. Where they cannot be installed, their wheels may lie in .whl/ and are unpacked for the run:
#     pip download -d .whl pytest hypothesis==6.120.0 && pip download -d .whl --no-deps lightly
# Each stage ends within ten minutes, and a stage that fails does not stop the next one. With OUT, a folder, all results
# and the records of the runs come back as two archives there, and the runs stay beside them in WORK until the machine
# goes, so that an interrupted one is resumed.
set -euo pipefail
cd "$(dirname "$0")/.."

data=${1:-../shared/data/cifar10}
python=${PYTHON:-python3}
stages=${STAGES:-"tests throughput goal views table sizes step clustering bounded evidence"}
seeds=${SEEDS:-0}
work=${OUT:+${WORK:-/tmp/coke-gpu}}
results=${work:-benchmarks}/results
runs=${work:-.}/runs
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" COKE_RESULTS="$results" PYTHONUNBUFFERED=1
mkdir -p "$results" "$runs"
if compgen -G ".whl/*.whl" >/dev/null; then
    packages=$(mktemp -d)
    for wheel in .whl/*.whl; do "$python" -m zipfile -e "$wheel" "$packages"; done
    export PYTHONPATH="$PYTHONPATH:$packages"
fi

"$python" -c 'import torch; assert torch.cuda.is_available(), "no CUDA device"; print(torch.cuda.get_device_name())'

stage() {
    case $1 in
    tests)
        timeout 540 "$python" -m pytest -m gpu -p no:cacheprovider \
            tests/test_gpu.py tests/test_cluster_cli.py tests/vectors/test_vectors.py
        ;;
    step)
        for precision in 32-true bf16-mixed; do
            timeout 260 "$python" benchmarks/step.py --device cuda --precision "$precision" --batch-size 512 \
                --out "$results/step-cuda-$precision.json"
        done
        ;;
    throughput)
        for flags in "" "--compile"; do
            timeout 280 "$python" benchmarks/throughput.py --device cuda --precision bf16-mixed --batch-size 512 \
                --pairs 5 $flags --profile "$runs/throughput${flags}.json.gz" \
                --out "$results/throughput-cuda${flags:+-compiled}.json"
        done
        ;;
    views | table | improvements | sizes | batch | variance | batch-size | decoupling | deep | study | auto | jpeg)
        # a run whose result is there is not run again, so that pieces add up
        timeout 580 "$python" benchmarks/claims.py "$1" --scale full --data "$data" --seeds "$seeds" \
            --minutes "${MINUTES:-1.5}"
        ;;
    goal) # batches of 500 are all alike, so that there are fewer graphs to compile
        timeout 580 "$python" benchmarks/evidence.py --scale full --views 2 --tag goal --seeds "$seeds" --data "$data" \
            --runs "$runs" --out "$results/evidence-goal.json" \
            precision=bf16-mixed compile=true batch_size=500 learning_rate=0.234 max_minutes="${MINUTES:-4}" \
            objective.rotation=1 objective.decorrelation=0.1 count_carry=0.5
        ;;
    clustering)
        timeout 300 "$python" benchmarks/clustering.py --device cuda --out "$results/clustering-cuda.json"
        ;;
    bounded) # by TF32's rounding nearly every row would be in doubt, and decided in float64
        timeout 580 "$python" benchmarks/bounded_gpu.py --out "$results/bounded-cuda.json"
        ;;
    evidence)
        timeout 580 "$python" benchmarks/evidence.py --scale full --views 1 --seeds "$seeds" --data "$data" \
            --runs "$runs" --out "$results/evidence-1view-full.json" \
            precision=bf16-mixed batch_size=500 learning_rate=0.234 max_minutes="${MINUTES:-6}"
        ;;
    *)
        echo "unknown stage $1" >&2
        return 2
        ;;
    esac
}

failed=""
for name in $stages; do
    echo "== $name"
    set +e
    (set -e && stage "$name")
    code=$? # 124: out of time, what it finished is kept
    set -e
    [ $code = 0 ] || failed+=" $name($code)"
    if [ -n "${OUT:-}" ]; then
        tar czf "$OUT/results.tgz" -C "$results" .
        tar czf "$OUT/runs.tgz" -C "$runs" --exclude=checkpoints .
    fi
done
[ -z "$failed" ] || { echo "failed:$failed" >&2 && exit 1; }
