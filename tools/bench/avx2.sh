#!/usr/bin/env bash
# tools/bench/avx2.sh PEER_PYTHON [ROUNDS [BUILD_DIR]]: the figures of docs/performance/cpu.md for
# AVX2, both sides held to it on any machine: `bench gpt` and `bench vit` against PyTorch (a Python
# that can import torch), ten alternations each, then the quickstart's training on two workers.
# Wants an idle machine; QUICKSTART=0 leaves the training out.
set -euo pipefail
cd "$(dirname "$0")/../.."
peer=${1:?a Python with torch, e.g. that of a virtual environment}
rounds=${2:-10}
build=${3:-build}
load() { echo "load $(cut -d' ' -f1-3 /proc/loadavg)"; }

echo "commit $(git describe --always --dirty), $(date -u '+%F %T'), $(load)," \
  "$(nproc) cores of$(sed -n 's/^model name[^:]*://p' /proc/cpuinfo | head -1)"
"$peer" -c 'import torch; print("peer: PyTorch", torch.__version__)'
for model in gpt vit; do
  printf '\n=== %s\n' "$model"
  tools/bench/compare_peer.py --avx2 --rounds "$rounds" "$build/bin/step_bench $model 2 6" \
    "$peer tools/bench/peer_torch.py $model 2 6"
  load
done
[[ ${QUICKSTART:-1} == 1 ]] || exit 0
printf '\n=== quickstart, OMNI_CPU=avx2\n'
run_dir=$(mktemp -d)
trap 'rm -rf "$run_dir"' EXIT
"$build/bin/omnitrain" data make --out data/quickstart
start=$SECONDS
OMNI_CPU=avx2 "$build/bin/omnitrain" train deploy/recipes/quickstart.yaml --run-dir "$run_dir/run"
printf 'training took %d:%02d, %s\n' $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60)) "$(load)"
