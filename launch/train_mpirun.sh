#!/usr/bin/env bash
# Pretrains under mpirun on this machine or on the hosts of a file, and starts again after a failure worth a relaunch.
#
#   RANKS=8 [HOSTS=hosts.txt] launch/train_mpirun.sh --config densemamba-130m --run.dir runs/130m --parallel.tensor 2
#
# HOSTS has lines "node1 slots=32". TRIES (default 3) bounds the starts.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

# 75 of the exit codes that `densemamba --help` lists, and 137: mpirun's when a rank was killed.
is_worth_a_relaunch() { [ "$1" = 75 ] || [ "$1" = 137 ]; }
launcher=(mpirun -n "${RANKS:-$(nproc)}")
if [ -n "${HOSTS:-}" ]; then launcher+=(--hostfile "$HOSTS"); fi

for ((try = 1; try <= ${TRIES:-3}; ++try)); do
  "${launcher[@]}" build/densemamba train --resume auto "$@"
  code=$?
  is_worth_a_relaunch "$code" || break
  echo "start $try ended with $code, which is worth a relaunch" >&2
done
exit "$code"
