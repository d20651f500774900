#!/usr/bin/env bash
# Run every target for so many minutes, one after the other: fuzz/run.sh MINUTES [TARGET...]
# What it tried beyond the seeds stays in FUZZ_CORPUS, and is where the next run begins. An input that breaks the rule of
# fuzz/harness.py ends the run of its target; it is kept in FUZZ_FAULTS, and the exit code is 1.
# FUZZ_SEED=1 gives the same mutations from run to run; PYTHON is the interpreter that has stm[fuzz,data].
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

minutes=${1:?minutes for each target}
shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(config weights checkpoint tables images)
python=${PYTHON:-.venv/bin/python}
corpus=${FUZZ_CORPUS:-build/fuzz/corpus} faults=${FUZZ_FAULTS:-build/fuzz/faults}
export OMP_NUM_THREADS=1
seconds=$(awk "BEGIN { print int(60 * $minutes) }")
failed=0
for target in "${targets[@]}"; do
    mkdir -p "$corpus/$target" "$faults"
    log=$faults/$target.log
    echo "$target: $seconds seconds"
    # A minute without an answer is a hang, however busy the machine is; the harness itself measures processor time.
    if ! "$python" -m fuzz "$target" "$corpus/$target" -max_total_time="$seconds" -max_len=65536 -rss_limit_mb=4096 \
        -timeout=60 ${FUZZ_SEED:+-seed="$FUZZ_SEED"} -artifact_prefix="$faults/$target-" > "$log" 2>&1; then
        failed=1
        grep -E "Fault|ERROR|SUMMARY" "$log" | head -5
    fi
    tail -1 "$log"
done
exit $failed
