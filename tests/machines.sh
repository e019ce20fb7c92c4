#!/usr/bin/env bash
# Runs the float32 tests as other machines would: with the instruction sets of PyTorch, oneDNN and our kernels
# held down, in every mixture that occurs, and with other numbers of threads; each in a fresh process.
#
#   tests/machines.sh [arguments of pytest]
#   tests/machines.sh --as [arguments of pytest] avx2 SSE41 baseline 2    one of the machines below
#
# PYTHON names the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."

# PyTorch's instruction set, oneDNN's, that of our kernels, threads
machines() {
  cat <<'LIST'
default SSE41       baseline 1
default SSE41       baseline 3
avx2    AVX2        avx2     1
avx2    AVX2        avx2     2
avx512  AVX512_CORE avx512   1
avx512  AVX512_CORE avx512   2
default AVX2        avx2     1
avx2    SSE41       baseline 2
avx512  AVX2        avx2     1
avx2    AVX512_CORE avx512   1
LIST
}

has() {  # an instruction set, as any of the three names it
  case $1 in
    avx2 | AVX2) grep -qw avx2 /proc/cpuinfo ;;
    avx512 | AVX512_CORE) grep -qw avx512dq /proc/cpuinfo ;;
  esac 2>/dev/null
}

run_as() {
  local name="PyTorch $1, oneDNN $2, kernels $3, threads $4" isa output
  for isa in "$1" "$2" "$3"; do
    if ! has "$isa"; then
      echo "skipped  $name: this CPU has no $isa"
      return
    fi
  done
  shift 4
  set -- "${PYTHON:-.venv/bin/python}" -m pytest -n 0 -q -m float32 -p no:cacheprovider "$@"
  if output=$("$@" 2>&1); then
    echo "passed   $name: $(tail -1 <<<"$output")"
  else
    printf 'FAILED   %s\n%s\n' "$name" "$output"
    return 1
  fi
}

if [ "${1:-}" = --as ]; then  # ARGUMENTS... and the four of a machine
  arguments=("${@:2:$#-5}")
  set -- "${@: -4}"
  export ATEN_CPU_CAPABILITY=$1 ONEDNN_MAX_CPU_ISA=$2 VPDARTS_CPU_ISA=$3 OMP_NUM_THREADS=$4
  run_as "$@" "${arguments[@]}"
  exit
fi

machines | xargs -P 2 -L 1 tests/machines.sh --as "$@"
