#!/usr/bin/env bash
# usage: nvcc.sh NVCC SOURCE OBJECT [flags] -- compiles kernels for the GPUs we have in mind (Ampere,
# Hopper, Blackwell, and PTX for later ones). A warning is an error, and so is a register that spills,
# but in fp64 kernels: those are for exactness, and call subroutines for exp and division. What ptxas says of each kernel stays in OBJECT.log.
set -euo pipefail
nvcc=$1 source=$2 object=$3
if ! "$nvcc" -std=c++20 -O3 -Xcompiler=-fPIC -Werror all-warnings -Xptxas=-v \
    -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a \
    -gencode=arch=compute_100,code=sm_100 -gencode=arch=compute_100,code=compute_100 \
    "${@:4}" -c "$source" -o "$object" 2> "$object.log"; then
  cat "$object.log" >&2
  exit 1
fi
if ! awk '/Compiling entry/ {kernel = $0}
          /spill stores/ && !/ 0 bytes spill stores/ {
            if (kernel !~ /Id[ELd]/) {print kernel; print; spills = 1}
          }
          END {exit spills}' "$object.log" >&2; then
  echo "$source: registers spill" >&2
  rm -f "$object"
  exit 1
fi
