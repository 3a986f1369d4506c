#!/usr/bin/env bash
# Everything about diva-rs that only a GPU can show: the tests that need CUDA, and the benchmark there.
#
#   benches/gpu.sh [--graph] [--channels-last] [--tf32] [--size "half published"] [--output FOLDER]
#   benches/gpu.sh --quick    in under eight minutes: the published size in bf16 at batches 1, 8 and 16, and two ranks
#   benches/gpu.sh --dry      the same script on the CPU with tiny models, in under a minute
#
# In the folder of `make gpu-bundle` it is `bash gpu.sh --quick`: the package is unpacked from wheels/ there.
#
# --graph          ours and plain PyTorch replay their step from a CUDA graph
# --channels-last  the denoiser and the VAE of every contestant in channels-last layout
# --tf32           float32 products and convolutions may use TF32
set -euo pipefail
cd "$(dirname "$0")"
if [ -d wheels ]; then
    python=${PYTHON:-python3}
    for wheel in wheels/*.whl; do "$python" -m zipfile -e "$wheel" site; done
    export PYTHONPATH=$PWD/site:$PWD
    output=results
else
    cd ..
    python=${PYTHON:-.venv/bin/python} output=benches/results/gpu
fi
sizes="microworld half published" rounds=10 dry= quick= options=()
while [ $# -gt 0 ]; do
    case $1 in
        --graph | --channels-last | --tf32) options+=("$1") ;;
        --size) sizes=${2:?--size needs a name} && shift ;;
        --output) output=${2:?--output needs a folder} && shift ;;
        --quick) quick=yes ;;
        --dry) dry=yes ;;
        *) echo "gpu.sh: unknown argument $1; the head of the script lists them" >&2 && exit 2 ;;
    esac
    shift
done

if [ -n "$dry" ]; then
    echo "dry run on the CPU: no figure of it says anything about a GPU"
    "$python" -m pytest lab/tests/test_cuda_step.py --collect-only
    exec "$python" -m lab bench --size tiny --rounds 1 --no-compile --rows step recap draws \
        ${options[@]+"${options[@]}"} --output "$output"
fi

"$python" - <<'PY' || exit 2
import sys, torch
if not torch.cuda.is_available():
    sys.exit("gpu.sh: PyTorch sees no CUDA device here; --dry runs the script on the CPU")
print(torch.cuda.get_device_name(), "CUDA", torch.version.cuda, "torch", torch.__version__)
PY
"$python" -m pytest lab/tests/test_cuda_step.py
if [ -n "$quick" ]; then
    "$python" -m torch.distributed.run --standalone --nproc_per_node=2 -m lab.benchmarks.one_gpu || true
    exec "$python" -m lab bench --device cuda --size published published@8 published@16 --precision bf16 \
        --rounds 2 --rows step memory ${options[@]+"${options[@]}"} --output "$output"
fi
# shellcheck disable=SC2086  # one word for each size
"$python" -m lab bench --device cuda --size $sizes --precision fp32 bf16 --rounds "$rounds" \
    --rows step peak memory growth recap draws ${options[@]+"${options[@]}"} --output "$output"
