#!/usr/bin/env bash
# tools/quickstart.sh [RUN_DIR [SEED]]: build, make the data, train, evaluate. `make quickstart`
# calls it after `make setup`. Every stage goes on where an earlier call was stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
run_dir=${1:-runs/quickstart}
seed=${2:-1}
jobs=${JOBS:-$(nproc)}

stage_start=0
stage() { printf '\n=== %s\n' "$1"; stage_start=$SECONDS; }
took() { printf '=== took %d:%02d\n' $(((SECONDS - stage_start) / 60)) $(((SECONDS - stage_start) % 60)); }

stage "build"
[[ -f build/build.ninja ]] || cmake --preset release
cmake --build build --target omnitrain -j "$jobs"
took

stage "data: data/quickstart"
build/bin/omnitrain data make --out data/quickstart
took

stage "train: $run_dir, seed $seed"
code=0
build/bin/omnitrain train deploy/recipes/quickstart.yaml --run-dir "$run_dir" \
  --set "training.seed=$seed" --set "data.seed=$seed" || code=$?
((code == 0)) || exit "$code"  # 3: stopped; the same command goes on
took

stage "does it look and listen? media of other samples, then none"
build/bin/omnitrain eval "$run_dir" --blind
took

stage "exact match on the held-out split"
build/bin/omnitrain eval "$run_dir"
took
printf '\nquickstart: done in %d:%02d; look into %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$run_dir"
