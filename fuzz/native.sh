#!/usr/bin/env bash
# The native library under AddressSanitizer and UBSan: a copy of the sources is built with both, and its tests run against
# that build, with many more shapes and layouts than usual. The first fault ends the run.
#   fuzz/native.sh [PYTHON] [SHAPES]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=$(realpath -s "${1:-.venv/bin/python}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r stm tests setup.py pyproject.toml README.md LICENSE "$work"
rm -f "$work"/stm/backends/*.so
cd "$work"

flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
CFLAGS=$flags LDFLAGS=$flags "$python" setup.py --quiet build_ext --inplace
"$python" -c 'from stm.backends import native_calls; print(native_calls.__file__)'

# Python itself is not built for them: their runtime comes first, and what Python never frees is no leak of ours.
export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export STM_FUZZ_SHAPES=${2:-2000} OMP_NUM_THREADS=2
"$python" -m pytest -q -s -n 0 -p no:cacheprovider tests/backends/test_native.py tests/backends/test_native_shapes.py
