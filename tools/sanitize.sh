#!/usr/bin/env bash
# usage: tools/sanitize.sh asan|tsan -- runs the sanitizer build's tests.
set -euo pipefail
cd "$(dirname "$0")/.."
# Debian's gRPC and Abseil are not instrumented, so what TSan sees inside them is ignored.
export TSAN_OPTIONS="ignore_noninstrumented_modules=1 suppressions=$PWD/tools/tsan.supp halt_on_error=1"
export ASAN_OPTIONS="detect_leaks=1"
export UBSAN_OPTIONS="print_stacktrace=1 halt_on_error=1"
labels=sanitize
[[ $1 == asan ]] || labels='sanitize|tsan'
ctest --test-dir "build-$1" --output-on-failure -L "$labels" -j "$(nproc)"
