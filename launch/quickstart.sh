#!/usr/bin/env bash
# From a fresh clone to a trained model in a few minutes on two CPU cores: installs, builds, makes a small corpus and a
# tokenizer, trains on two ranks, stops, resumes from the checkpoint, writes a sample and prints the validation loss.
#
#   launch/quickstart.sh [OPTION...]     OPTIONS go to `densemamba train`, e.g. --config quickstart-mamba
#
# Everything it makes lies in build/ and runs/quickstart/, which is the quickstart's own: each start replaces it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly folder=runs/quickstart ranks=2 stop_at=400 vocabulary=4096
say() { printf '\n== %s\n' "$*"; }

say "Packages"
launch/install_packages.sh
echo "All needed packages are installed."

say "Build (build/, Release)"
if command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ]; then
  echo "A CUDA toolkit was found: the CUDA backend is included. The quickstart itself computes on the CPU."
else
  echo "No CUDA toolkit was found: CPU only."
fi
cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DDM_CUDA=AUTO >/dev/null
cmake --build build --target densemamba
readonly densemamba=build/densemamba

if [ -e "$folder" ]; then
  [ -e "$folder/.quickstart" ] || {
    echo "$folder exists and was not made by this script; move it away, then start again" >&2
    exit 1
  }
  say "Replacing the earlier quickstart in $folder"
  rm -rf "$folder"
fi
mkdir -p "$folder"
touch "$folder/.quickstart"

say "Corpus ($folder/data, The Pile's format)"
python3 launch/make_corpus.py "$folder/data"

say "Tokenizer (SentencePiece, $vocabulary pieces)"
"$densemamba" tokenizer train --input "$folder/data/00.jsonl.zst" --vocabulary "$vocabulary" --output "$folder/tokenizer.model"

# Open MPI refuses to start as root, as in a container, unless told twice. Ranks on fewer cores must yield while they wait.
if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
if [ "$(nproc)" -lt "$ranks" ]; then export OMPI_MCA_mpi_yield_when_idle=1; fi
train() {
  mpirun --oversubscribe -n "$ranks" "$densemamba" train --config configs/quickstart.cfg --run.device cpu --run.dir "$folder/run" \
    --data.train "$folder/data/00.jsonl.zst" --data.valid "$folder/data/val.jsonl.zst" \
    --data.tokenizer "$folder/tokenizer.model" "$@"
}

say "Training on $ranks ranks, to step $stop_at"
train "$@" --train.stop_at "$stop_at"
say "Resuming from the newest checkpoint"
train "$@" --resume must

say "The checkpoints, every byte read"
"$densemamba" verify "$folder/run"

say "A sample"
"$densemamba" generate --checkpoint "$folder/run" --prompt "The computer is" --tokens 60

say "Validation loss"
python3 - "$folder/run/metrics.jsonl" <<'PYTHON'
import json, math, sys
with open(sys.argv[1]) as file:
    valid = [event for event in map(json.loads, file) if event.get("event") == "valid"][-1]
loss, unigram = valid["loss"], valid["unigram_loss"]
print(f"model    {loss:.4f} nats a token (perplexity {math.exp(loss):.1f})")
print(f"unigram  {unigram:.4f} nats a token (perplexity {math.exp(unigram):.1f}): guessing by token frequency alone")
sys.exit(0 if loss < unigram else "The model did not get below the unigram loss: something is wrong.")
PYTHON
echo
echo "The run is in $folder/run; go on with: mpirun -n $ranks $densemamba train --config FILE --run.dir DIRECTORY ..."
