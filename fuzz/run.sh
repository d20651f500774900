#!/usr/bin/env bash
# Run every target for so many minutes: fuzz/run.sh MINUTES [TARGET...], one after the other, or FUZZ_JOBS at a time.
# What it tried beyond the seeds stays in FUZZ_CORPUS, and is where the next run begins. An input that breaks the rule of
# fuzz/harness.py ends the run of its target; it is kept in FUZZ_FAULTS, and the exit code is not 0.
# FUZZ_SEED=1 gives the same mutations from run to run; PYTHON is the interpreter that has stm[fuzz,data].
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

minutes=${1:?minutes for each target}
shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(config weights checkpoint tables images)
export python=${PYTHON:-.venv/bin/python} seconds=$(awk "BEGIN { print int(60 * $minutes) }")
export corpus=${FUZZ_CORPUS:-build/fuzz/corpus} faults=${FUZZ_FAULTS:-build/fuzz/faults}
export OMP_NUM_THREADS=1
# libFuzzer ends a process on the spot, and leaves what it had in TMPDIR.
TMPDIR=$(mktemp -d)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT

search() {
    local target=$1 log=$faults/$1.log failed=0
    mkdir -p "$corpus/$target" "$faults"
    # A minute without an answer is a hang, however busy the machine is; the harness itself measures processor time.
    "$python" -m fuzz "$target" "$corpus/$target" -max_total_time="$seconds" -max_len=65536 -rss_limit_mb=4096 \
        -timeout=60 ${FUZZ_SEED:+-seed="$FUZZ_SEED"} -artifact_prefix="$faults/$target-" > "$log" 2>&1 || failed=1
    # At once, so that targets that run beside each other keep their lines together. The last line has the inputs.
    local said=""
    [ "$failed" = 0 ] || said=$(grep -E "Fault|ERROR|SUMMARY|Base64" "$log" | head -8)$'\n'
    printf '%s: %s seconds\n%s%s\n' "$target" "$seconds" "$said" "$(tail -1 "$log")"
    return "$failed"
}
export -f search
printf '%s\n' "${targets[@]}" | xargs -P "${FUZZ_JOBS:-1}" -I TARGET bash -c 'search TARGET'
