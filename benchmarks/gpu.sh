#!/usr/bin/env bash
# Builds, checks and measures on this machine's GPU, within ten minutes once PyTorch is there.
#   benchmarks/gpu.sh [--stage NAME]... [FOLDER]
# FOLDER (default: gpu) gets a JSON file a stage; a name: contract, ops-fp32, ops-tf32, ops-bf16, training or
# leave-one-out. A stage takes two minutes at most; --stage takes up again what a limit from outside cut off.
#   PYTHON         a Python whose PyTorch finds the GPU; default: python3, or .venv as `make setup` makes it,
#                  which fetches PyTorch
#   VPDARTS_WHEELS a folder of wheels: what that Python lacks is taken from there, and nothing is fetched
set -euo pipefail

fail() { echo "error: $1" >&2; exit 2; }

if [ -n "${VPDARTS_WHEELS:-}" ]; then
    [ -d "$VPDARTS_WHEELS" ] || fail "VPDARTS_WHEELS names no folder; got $VPDARTS_WHEELS"
    VPDARTS_WHEELS=$(cd "$VPDARTS_WHEELS" && pwd)
fi
cd "$(dirname "$0")/.."

stages=() folder=gpu
while [ $# -gt 0 ]; do
    case $1 in
        --stage) [ $# -gt 1 ] || fail "--stage needs a name"; stages+=(--stage "$2"); shift 2 ;;
        -h | --help) sed -n '2,/^set/{/^# /s/^# //p}' "$0"; exit ;;
        -*) fail "unknown option $1; benchmarks/gpu.sh [--stage NAME]... [FOLDER]" ;;
        *) folder=$1; shift ;;
    esac
done

command -v nvidia-smi > /dev/null || fail "no nvidia-smi: this needs an NVIDIA GPU and its driver"
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1) || fail "nvidia-smi finds no GPU"

export VPDARTS_NATIVE=on VPDARTS_CUDA=off
if command -v nvcc > /dev/null; then
    # For this GPU only; all of them take minutes.
    export VPDARTS_CUDA=on TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-$capability}"
else
    echo "no nvcc: without the CUDA kernels, Triton's only"
fi

finds_gpu() { "$1" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null; }

# A virtual environment that sees everything the given Python sees, also where that is one itself, and in
# which what it lacks is installed; the package is built in place and found by PYTHONPATH.
set_up_beside() {
    local venv=build/gpu-venv
    rm -rf "$venv"
    "$1" -m venv --system-site-packages --without-pip "$venv"
    python=$venv/bin/python
    "$1" -c 'import sys; print(*(path for path in sys.path if path.endswith("-packages")), sep="\n")' \
        > "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
    # CMake and Ninja may be among that Python's scripts.
    PATH=$PWD/$venv/bin:$("$1" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH
    export PATH PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
    local requirements fetch=()
    requirements=$(sed -n '/^requires = /s/[^"]*\("[^"]*"\)[^"]*/\1 /gp' pyproject.toml | tr -d '"')
    [ -z "${VPDARTS_WHEELS:-}" ] || fetch=(--no-index --find-links "$VPDARTS_WHEELS")
    # shellcheck disable=SC2086  # words
    "$python" -m pip --disable-pip-version-check install -q "${fetch[@]}" $requirements numpy tyro pytest ||
        fail "what $1 lacks could not be installed; where nothing can be fetched, name a folder of wheels in VPDARTS_WHEELS (pip download -d FOLDER tyro)"
    "$python" -m pip --disable-pip-version-check install -q "${fetch[@]}" hypothesis ||
        echo "no hypothesis: the stage contract will fail"
    local status=0
    timeout 110 "$python" setup.py -q build_ext --inplace || status=$?
    [ "$status" != 124 ] || fail "the native extension is not built yet; the same command again goes on from there"
    [ "$status" = 0 ] || fail "the native extension could not be built"
}

if finds_gpu "${PYTHON:-python3}"; then
    set_up_beside "${PYTHON:-python3}"
else
    [ -z "${PYTHON:-}" ] || fail "PyTorch of $PYTHON is missing or finds no CUDA device"
    [ "$VPDARTS_CUDA" = on ] || unset VPDARTS_NATIVE
    make setup
    python=.venv/bin/python
    finds_gpu "$python" || fail "PyTorch in .venv finds no CUDA device"
fi
exec timeout 470 "$python" benchmarks/gpu.py --out "$folder" "${stages[@]}"
