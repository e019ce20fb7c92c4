#!/usr/bin/env bash
# Builds, checks and measures on this machine's GPU, within ten minutes once PyTorch is installed.
#   benchmarks/gpu.sh [REPORT]    REPORT is the JSON file to write; default: gpu.json
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "error: $1" >&2; exit 2; }

command -v nvidia-smi > /dev/null || fail "no nvidia-smi: this needs an NVIDIA GPU and its driver"
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1) || fail "nvidia-smi finds no GPU"

if command -v nvcc > /dev/null; then
    # For this GPU only; all of them take minutes.
    VPDARTS_CUDA=on TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-$capability}" make setup
else
    echo "no nvcc: without the CUDA kernels, Triton's only"
    make setup
fi

.venv/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    fail "PyTorch in .venv finds no CUDA device"
exec timeout 500 .venv/bin/python benchmarks/gpu.py --out "${1:-gpu.json}"
