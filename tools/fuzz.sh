#!/usr/bin/env bash
# usage: tools/fuzz.sh BUILD_DIR SECONDS -- runs each fuzz target that long, as many at a time as
# there are processors; a finding fails. Every tests/fuzz/NAME_fuzzer.cc must have been built and
# have seeds in tests/fuzz/corpus/NAME, and no seeds lie there without a target.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$1 seconds=$2

names=()
for source in tests/fuzz/*_fuzzer.cc; do names+=("$(basename "$source" _fuzzer.cc)"); done
for name in "${names[@]}"; do
  [[ -x $build/bin/${name}_fuzzer ]] ||
    { echo "fuzz: no $build/bin/${name}_fuzzer; is it in tests/fuzz/CMakeLists.txt?" >&2; exit 1; }
  [[ -n $(ls -A "tests/fuzz/corpus/$name" 2>/dev/null) ]] ||
    { echo "fuzz: no seeds in tests/fuzz/corpus/$name" >&2; exit 1; }
done
for corpus in tests/fuzz/corpus/*; do
  [[ -f tests/fuzz/$(basename "$corpus")_fuzzer.cc ]] ||
    { echo "fuzz: $corpus belongs to no target" >&2; exit 1; }
done

fuzz() {  # NAME
  local work; work=$(mktemp -d)
  mkdir "$work/corpus"
  if "$build/bin/$1_fuzzer" -max_total_time="$seconds" -timeout=60 -rss_limit_mb=2048 \
      -print_final_stats=1 -artifact_prefix="$work/" "$work/corpus" "tests/fuzz/corpus/$1" \
      > "$work/log" 2>&1; then
    echo "fuzz: $1 for $seconds s: $(grep -o 'seed corpus: files: [0-9]*' "$work/log")," \
         "$(awk '/number_of_executed_units/ {print $2}' "$work/log") inputs, no finding"
    rm -rf "$work"
  else
    tail -40 "$work/log"
    echo "fuzz: $1 FAILED; log and input in $work" >&2
    return 1
  fi
}

export build seconds
export -f fuzz
printf '%s\n' "${names[@]}" | xargs -P "$(nproc)" -I NAME bash -c 'set -euo pipefail; fuzz NAME'
