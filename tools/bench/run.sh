#!/usr/bin/env bash
# tools/bench/run.sh [BUILD_DIR]: every benchmark that is built, one after the other; their output
# also goes to BUILD_DIR/bench/NAME.txt. SMOKE=1 does the smallest size of each.
#
# Figures for a report (tools/bench/reports/) want an otherwise idle machine.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build}
mkdir -p "$build/bench"
echo "commit $(git describe --always --dirty 2>/dev/null || echo unknown), $(date -u +%F), load $(cut -d' ' -f1 /proc/loadavg)," \
  "$(nproc) cores of$(sed -n 's/^model name[^:]*://p' /proc/cpuinfo | head -1)"

failed=()
bench() {  # NAME COMMAND...
  local name=$1
  shift
  printf '\n=== %s: %s\n' "$name" "$*"
  "$@" 2>&1 | tee "$build/bench/$name.txt" || failed+=("$name")
}
smoke=${SMOKE:-0}
for program in "$build"/bin/*_bench; do
  name=$(basename "$program")
  case $name in
    step_bench) continue ;;  # the body of `omnitrain bench`, for compare_peer.py
    comm_bench) small=(--ranks=3 --runs=2 --max_bytes=1048576) ;;
    media_bench) small=('--benchmark_filter=side:112|wav') ;;
    model_bench) small=(--benchmark_filter=image) ;;
    lanes_bench) small=(--benchmark_filter=lanes:4) ;;
    load_bench) small=(--mib=90 --runs=1) ;;
    executor_bench) small=(--steps=1 --runs=1) ;;
    joint_bench) small=(--smoke) ;;
    moe_bench) small=(--runs=2 --max_rows=1024) ;;
    ops_bench) small=(--benchmark_filter=/24/128/704) ;;
    *) small=() ;;
  esac
  case $name in
    comm_bench | executor_bench | joint_bench | load_bench | moe_bench) ;;
    *) [[ $smoke == 0 ]] || small+=(--benchmark_min_time=0.01) ;;
  esac
  if [[ $smoke == 1 ]]; then bench "$name" "$program" "${small[@]}"; else bench "$name" "$program"; fi
done
steps=10
[[ $smoke == 1 ]] && steps=1
for model in gpt vit; do
  bench "$model" "$build/bin/omnitrain" bench "$model" --threads "$(nproc)" --steps "$steps"
done
((${#failed[@]} == 0)) || { echo "bench: failed: ${failed[*]}" >&2; exit 1; }
