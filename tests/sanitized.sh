#!/usr/bin/env bash
# Runs a Python command with the native extension under AddressSanitizer and UndefinedBehaviorSanitizer:
#
#     tests/sanitized.sh tests/support/fuzz_native.py --calls 1000000
#
# Builds that extension in build/sanitized first (a minute or two), beside a copy of the package. PYTHON names
# the Python that has PyTorch, .venv's by default. Any fault that is found ends the process with a report.
set -euo pipefail

cd "$(dirname "$0")/.."
root=$PWD
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
build=$root/build/sanitized
mkdir -p "$root/build"
export PATH="$(dirname "$python"):$PATH"
sanitize="-O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=all"

cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Sanitized -DCMAKE_CXX_FLAGS_SANITIZED="$sanitize" \
  -DCMAKE_MAKE_PROGRAM="$(command -v ninja)" -DPython_EXECUTABLE="$python" -DVPDARTS_CUDA=off \
  -DVPDARTS_TORCH_DIR="$("$python" -c 'import importlib.util as u; print(*u.find_spec("torch").submodule_search_locations)')" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" > "$build.log"
cmake --build "$build" >> "$build.log"
rm -rf "$build/package"
mkdir "$build/package"
cp -r vpdarts_fast "$build/package"
rm -f "$build"/package/vpdarts_fast/_C*.so
cp "$build"/_C*.so "$build/package/vpdarts_fast"

# The sanitizers' library goes first, and the C++ library with it, whose exceptions it follows. Sizes that
# cannot be allocated are errors of PyTorch; Python itself leaks.
compiler=${CXX:-g++}
export PYTHONPATH="$build/package" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export ASAN_OPTIONS="detect_leaks=0:allocator_may_return_null=1:detect_stack_use_after_return=1:strict_init_order=1:max_allocation_size_mb=8192"
export UBSAN_OPTIONS="print_stacktrace=1"
LD_PRELOAD="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libstdc++.so)" exec "$python" "$@"
