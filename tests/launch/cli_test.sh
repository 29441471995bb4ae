#!/usr/bin/env bash
# The command line as a user meets it: help, exit codes, error lines, tokenizer round trips, inspect and verify.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failures=0

# expect EXIT_CODE TEXT ARGUMENT...: `densemamba ARGUMENT...` ends with EXIT_CODE and its output holds TEXT.
expect() {
  local code=0 want=$1 text=$2
  shift 2
  "$DENSEMAMBA" "$@" >"$folder/output" 2>&1 </dev/null || code=$?
  if [ "$code" != "$want" ] || ! grep -qF -- "$text" "$folder/output"; then
    echo "densemamba $*: expected exit code $want and '$text', got $code and:" >&2
    cat "$folder/output" >&2
    failures=$((failures + 1))
  fi
}
# same NAME EXPECTED ACTUAL
same() {
  if [ "$2" != "$3" ]; then
    echo "$1: expected '$2', got '$3'" >&2
    failures=$((failures + 1))
  fi
}

expect 0 "Usage: densemamba COMMAND" --help
expect 2 "Usage: densemamba COMMAND"
expect 0 "densemamba 0." --version
expect 2 "densemamba: unknown command 'trian'; did you mean 'train'?" trian
expect 2 "densemamba: unknown command 'xyzzy'; \`densemamba --help\` lists them" xyzzy
for command in train plan generate inspect verify; do
  expect 0 "Usage: densemamba $command" "$command" --help
  expect 2 "unknown option '--hlep'; did you mean '--help'?" "$command" --hlep
done
for action in train encode decode info; do expect 0 "Usage: densemamba tokenizer $action" tokenizer "$action" --help; done
expect 2 "unknown action 'encoed'; did you mean 'encode'?" tokenizer encoed
expect 2 "--input is missing" tokenizer train --output "$folder/x"
expect 1 "no.model" tokenizer info "$folder/no.model"

# Configuration: presets by name, files, what is printed is what would run.
expect 2 "did you mean 'quickstart'?" train --config quickstrat
expect 2 "did you mean '--train.batch'?" train --train.bach 3
printf '[train]\nbatch = 3\nsteeps = 4\n' >"$folder/wrong.cfg"
expect 2 "wrong.cfg:3: unknown option 'train.steeps'; did you mean 'train.steps'?" train --config "$folder/wrong.cfg"
"$DENSEMAMBA" train --config quickstart --train.batch 32 --print-config >"$folder/printed.cfg"
"$DENSEMAMBA" train --config "$folder/printed.cfg" --print-config >"$folder/again.cfg"
same "printed configuration" "$(cat "$folder/printed.cfg")" "$(cat "$folder/again.cfg")"
same "command line over file" "batch = 32" "$(grep '^batch = ' "$folder/printed.cfg")"

# Small data: 400 documents of words.
python3 - "$folder/data.jsonl" <<'PYTHON'
import json, sys
words = "state space model hidden layer dense connection token gate scan channel memory sequence train".split()
with open(sys.argv[1], "w") as file:
    for document in range(400):
        text = " ".join(words[(document * 7 + i * (1 + document % 5)) % len(words)] + str(i % 10) for i in range(40)) + ".\n"
        file.write(json.dumps({"text": text, "meta": {"pile_set_name": "test"}}) + "\n")
PYTHON

# Tokenizers: text, ids, the same text.
text=$'Dense state space models,\n  twice: é ☃ 12345 <s>'
for tokenizer in bytes "$folder/tokenizer.model"; do
  if [ "$tokenizer" != bytes ]; then
    expect 0 "300 pieces" tokenizer train --input "$folder/data.jsonl" --vocabulary 300 --output "$tokenizer"
    expect 0 "vocabulary 300" tokenizer info "$tokenizer"
  fi
  ids=$(printf '%s' "$text" | "$DENSEMAMBA" tokenizer encode "$tokenizer")
  same "$tokenizer round trip" "$text" "$(printf '%s' "$ids" | "$DENSEMAMBA" tokenizer decode "$tokenizer")"
done
same "bytes are their own ids" "72 105" "$(printf Hi | "$DENSEMAMBA" tokenizer encode bytes)"
printf '\xff' | "$DENSEMAMBA" tokenizer encode bytes >"$folder/output" 2>&1 && same "invalid UTF-8" refused accepted
printf '72 x1' | "$DENSEMAMBA" tokenizer decode bytes >"$folder/output" 2>&1 && same "wrong id" refused accepted

# A run of two steps on one process: inspected, verified, continued; one flipped byte is found.
run=(train --run.device cpu --run.dir "$folder/run" --model.layers 2 --model.d_model 16 --train.batch 2 --train.micro_batch 2
  --train.sequence 32 --train.steps 4 --data.train "$folder/data.jsonl" --data.tokenizer "$folder/tokenizer.model")
expect 0 "densemamba" "${run[@]}" --train.stop_at 2
expect 0 "step 2," inspect "$folder/run" --norms
grep -q "backbone.layers.1.mixer.dense_gate.fc2.weight .*\[32, 8\] .*norm" "$folder/output" || same inspect "a norm" "none"
grep -q "options.model.d_model = 16" "$folder/output" || same inspect "the options" "none"
expect 0 "intact" verify "$folder/run"
expect 0 "densemamba" "${run[@]}" --resume must
same "checkpoints" 2 "$("$DENSEMAMBA" verify "$folder/run" | grep -c '^intact ')"
expect 0 "" generate "$folder/run" --prompt "state space" --tokens 5
python3 - "$folder"/run/checkpoints/step_00000002/*.safetensors <<'PYTHON'
import sys
with open(sys.argv[1], "r+b") as file:
    file.seek(-5, 2)
    byte = file.read(1)[0]
    file.seek(-5, 2)
    file.write(bytes([byte ^ 1]))
PYTHON
expect 1 "DAMAGED" verify "$folder/run"
grep -q "^intact .*step_00000004" "$folder/output" || same "the other checkpoint" intact damaged
expect 2 "neither a checkpoint nor a run directory" verify "$folder/nowhere"
expect 2 "give a checkpoint" inspect

# Whoever closes the pipe does not make it a failure of ours by a signal.
"$DENSEMAMBA" train --help | head -n 1 >"$folder/output" || same "closed pipe" 0 "$?"

[ "$failures" = 0 ] || exit 1
echo "all as expected"
