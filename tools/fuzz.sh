#!/usr/bin/env bash
# usage: tools/fuzz.sh BUILD_DIR SECONDS -- runs each fuzz target that long; a finding fails.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$1 seconds=$2
found=0
for target in "$build"/bin/*_fuzzer; do
  name=$(basename "$target")
  found=1
  work=$(mktemp -d)
  echo "fuzz: $name for $seconds s"
  if ! "$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
      -artifact_prefix="$work/" "$work" "tests/fuzz/corpus/${name%_fuzzer}" > "$work.log" 2>&1; then
    tail -40 "$work.log"
    echo "fuzz: $name FAILED; input in $work" >&2
    exit 1
  fi
  grep -E 'stat::number_of_executed_units' "$work.log" || true
  rm -rf "$work" "$work.log"
done
(( found )) || { echo "fuzz: no target in $build/bin" >&2; exit 1; }
