#!/usr/bin/env bash
# usage: registers.sh LOGS TABLE [--write] -- the most registers a thread of each file's kernels (fp64
# apart) takes on each GPU, from what ptxas said (nvcc.sh), against TABLE. More is a failure: fewer
# threads fit. With --write TABLE is written anew.
set -euo pipefail
found=$(for log in "$1"/*.cu.o.log; do
  awk -v file="$(basename "$log" .o.log)" '
    /Compiling entry/ {is_double = $0 ~ /Id[ELd]/; match($0, /sm_[0-9a]+/); gpu = substr($0, RSTART, RLENGTH)}
    /Used [0-9]+ registers/ {if (!is_double && $5 + 0 > most[gpu]) most[gpu] = $5 + 0}
    END {printf "%-20s sm_80 %d  sm_90a %d  sm_100 %d\n", file, most["sm_80"], most["sm_90a"], most["sm_100"]}' "$log"
done)
if [[ "${3:-}" == --write ]]; then
  printf '%s\n' "$found" > "$2"
  exit 0
fi
paste -d' ' "$2" <(printf '%s\n' "$found") | awk '
  $1 != $8 {print "registers: " $8 " is not where the table has " $1; bad = 1}
  {for (i = 3; i <= 7; i += 2) if ($(i + 7) > $i) {print $1 " on " $(i - 1) ": " $(i + 7) " registers, expected at most " $i; bad = 1}}
  END {exit bad}'
