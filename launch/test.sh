#!/usr/bin/env bash
# Builds the project and runs its tests: everything that this machine can run.
#
#   launch/test.sh              GCC build and all tests, Clang build, tests under the address and undefined-behaviour
#                               sanitizers; the summary of the first is printed last
#   launch/test.sh --quick      GCC build and all tests alone
#   launch/test.sh --clang      Clang build alone (compiled, not run)
#   launch/test.sh --sanitize   sanitizer build and tests alone
#   launch/test.sh --cuda       build with the CUDA backend, and the tests that need a GPU, alone
#
# Build folders: build/, build-clang/, build-sanitize/, build-cuda/. JOBS limits parallel compiles and tests (default: all
# cores).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

jobs=${JOBS:-$(nproc)}
parts="gcc clang sanitize"  # "cuda" here makes it a part of every complete run.
case "${1:-}" in
  "") ;;
  --quick) parts=gcc ;;
  --clang) parts=clang ;;
  --sanitize) parts=sanitize ;;
  --cuda) parts=cuda ;;
  *)
    sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
wants() { case " $parts " in *" $1 "*) true ;; *) false ;; esac; }

# Open MPI refuses to start as root, as in a container, unless told twice.
if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi

# build FOLDER OPTION...: configures and compiles.
build() {
  local folder=$1
  shift
  echo "== $folder: compiling ($*)"
  cmake -S . -B "$folder" -G Ninja "$@" >"$folder.log" 2>&1 || { cat "$folder.log" >&2; exit 1; }
  rm -f "$folder.log"
  cmake --build "$folder" -j "$jobs"
}

# Compiled first, so that the tests' own summary ends the output.
if wants gcc; then build build; fi
if wants clang; then
  if command -v clang++ >/dev/null; then
    build build-clang -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_CXX_FLAGS_RELEASE=-O0  # For its warnings; nothing is run.
  elif [ "$parts" = clang ]; then
    echo "clang++ is not installed: apt-get install clang" >&2
    exit 1
  else
    echo "== skipped: Clang build (clang++ is not installed)"
  fi
fi
if wants sanitize; then
  build build-sanitize -DDM_SANITIZE=ON -DCMAKE_CXX_FLAGS_RELEASE=-O1  # Compiles in half the time of -O3.
  # Tests of one process: those that start ranks run in the first build.
  ctest --test-dir build-sanitize --output-on-failure --no-tests=error -j "$jobs" -L cpu
fi
if wants cuda; then
  if nvcc=$(PATH=$PATH:/usr/local/cuda/bin command -v nvcc); then
    build build-cuda -DDM_CUDA=ON -DCMAKE_CUDA_COMPILER="$nvcc"
    ctest --test-dir build-cuda --output-on-failure -j 1 -L 'cuda|nccl'  # One at a time: they share the GPU.
  elif [ "$parts" = cuda ]; then
    echo "nvcc is not installed: install a CUDA toolkit, or add its bin folder to PATH" >&2
    exit 1
  else
    echo "== skipped: CUDA build (no CUDA toolkit was found)"
  fi
elif wants gcc; then
  echo "== skipped: CUDA build and its tests (labels cuda, nccl); launch/test.sh --cuda makes it"
fi
if wants gcc; then
  ctest --test-dir build --output-on-failure --no-tests=error -j "$jobs"
fi
