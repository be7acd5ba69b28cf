#!/usr/bin/env bash
# usage: tools/gpu_check.sh [BUILD_DIR] -- what holds on this machine's GPU, a line each: tests of ops,
# models and jobs on it beside the CPU, then the quickstart's model for some steps. Run it where
# omnitrain was built with CUDA. Nothing here has been run on a GPU yet.
set -uo pipefail
cd "$(dirname "$0")/.."
build=${1:-build}
export OMNITRAIN_TEST_GPU=1
log=$(mktemp -d)
failed=0

check() {  # NAME COMMAND...
  local name=$1 begin=$SECONDS
  shift
  if "$@" >"$log/$name" 2>&1; then
    printf '%-28s holds   %4d s\n' "$name" "$((SECONDS - begin))"
  else
    printf '%-28s FAILS   %4d s   %s\n' "$name" "$((SECONDS - begin))" "$log/$name"
    failed=1
  fi
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
check streams "$build/bin/device_test" --gtest_filter='*/Cuda'
check op_gradients "$build/bin/op_gradients_test" --gtest_filter='*/Cuda'
check experts "$build/bin/moe_test" --gtest_filter='*/Cuda'
check recompute "$build/bin/recompute_test" --gtest_filter='*/Cuda'
check optimizer "$build/bin/optimizer_test" --gtest_filter='*/Cuda'
check ranks_as_one "$build/bin/equivalence_test" --gtest_filter='*CudaGpu'
check layouts "$build/bin/equivalence_sweep" --seed 1 --plans 20 --device cuda --gpu-comm host
if [[ -d data/quickstart ]] || "$build/bin/omnitrain" data make --out data/quickstart >"$log/data" 2>&1; then
  check quickstart_50_steps "$build/bin/omnitrain" train deploy/recipes/quickstart.yaml \
    --run-dir "$log/run" --steps 50 --set runtime.device=cuda --set runtime.gpu_comm=host \
    --set training.dtype=bf16 --set training.eval_at_end=false
fi
exit "$failed"
