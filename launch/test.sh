#!/usr/bin/env bash
# Builds the project and runs its tests: everything that this machine can run.
#
#   launch/test.sh                  GCC build and all tests, Clang build, tests under the address and undefined-behaviour
#                                   sanitizers; the summary of the first is printed last
#   launch/test.sh --quick          GCC build and all tests alone
#   launch/test.sh --clang          Clang build alone (compiled, not run)
#   launch/test.sh --sanitize       sanitizer build and tests alone
#   launch/test.sh --cuda           what the tests on GPUs need, and these tests, alone
#   launch/test.sh --cuda-sanitize  the CUDA kernels under compute-sanitizer's memcheck and racecheck, on a GPU
#
# The GCC build includes the CUDA backend where nvcc and NCCL are found; tests for more GPUs than there are are skipped.
# Build folders: build/, build-clang/, build-sanitize/. JOBS limits parallel compiles and tests (default: all cores).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

jobs=${JOBS:-$(nproc)}
parts="gcc clang sanitize"
case "${1:-}" in
  "") ;;
  --quick) parts=gcc ;;
  --clang | --sanitize | --cuda | --cuda-sanitize) parts=${1#--} ;;
  *)
    sed -n '2,14s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
wants() { case " $parts " in *" $1 "*) true ;; *) false ;; esac; }

# Open MPI refuses to start as root, as in a container, unless told twice.
if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi

# configure FOLDER OPTION...: leaves in $cuda_backend CMake's line about it.
configure() {
  local folder=$1
  shift
  echo "== $folder: compiling ($*)"
  cmake -S . -B "$folder" -G Ninja "$@" >"$folder.log" 2>&1 || { cat "$folder.log" >&2; exit 1; }
  cuda_backend=$(grep '^-- CUDA backend' "$folder.log")
  echo "$cuda_backend"
  rm -f "$folder.log"
}
# configure_with_cuda: build/, or the end where it would be without the CUDA backend.
configure_with_cuda() {
  configure build -DDM_CUDA=AUTO
  if [[ $cuda_backend != *"backend: with"* ]]; then
    echo "nvcc or NCCL is missing: install a CUDA toolkit and libnccl-dev, or set CUDA_HOME" >&2
    exit 1
  fi
}

# Compiled first, so that the tests' own summary ends the output.
if wants gcc; then
  configure build -DDM_CUDA=AUTO
  cmake --build build -j "$jobs"
fi
if wants clang; then
  if command -v clang++ >/dev/null; then
    configure build-clang -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_CXX_FLAGS_RELEASE=-O0  # For its warnings; nothing is run.
    cmake --build build-clang -j "$jobs"
  elif [ "$parts" = clang ]; then
    echo "clang++ is not installed: apt-get install clang" >&2
    exit 1
  else
    echo "== skipped: Clang build (clang++ is not installed)"
  fi
fi
if wants sanitize; then
  configure build-sanitize -DDM_SANITIZE=ON -DCMAKE_CXX_FLAGS_RELEASE=-O1  # Compiles in half the time of -O3.
  cmake --build build-sanitize -j "$jobs"
  # Tests of one process: those that start ranks run in the first build.
  ctest --test-dir build-sanitize --output-on-failure --no-tests=error -j "$jobs" -L cpu
fi
if wants cuda; then
  configure_with_cuda
  cmake --build build -j "$jobs" --target gpu_tests
  ctest --test-dir build --output-on-failure --no-tests=error -L 'cuda|nccl'
fi
if wants cuda-sanitize; then
  configure_with_cuda
  sanitizer=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer) || {
    echo "compute-sanitizer is not installed; it is part of the CUDA toolkit" >&2
    exit 1
  }
  cmake --build build -j "$jobs" --target kernels_cuda_test
  # A kernel runs up to a hundred times slower: the sizes that cross every edge, not those that fill a GPU.
  large='*WideAndLong*:*SequenceOf*:*RealShapes*:*WholeVocabulary*'
  echo "== the CUDA kernels under memcheck"
  "$sanitizer" --tool memcheck --error-exitcode 1 build/kernels_cuda_test --gtest_brief=1 --gtest_filter="-$large"
  echo "== the CUDA kernels under racecheck"  # Without matmul: it reports races inside cuBLASLt's kernels.
  # The tool makes room for barriers that the compiler knows; those in PTX (scan_warp_barrier.cuh) are told.
  "$sanitizer" --tool racecheck --num-cuda-barriers 64 --error-exitcode 1 build/kernels_cuda_test --gtest_brief=1 --gtest_filter="-$large:*Matmul*"
fi
if wants gcc; then
  ctest --test-dir build --output-on-failure --no-tests=error -j "$jobs"
fi
