#!/usr/bin/env bash
# Training on one and on several cards: the same losses, and tokens a second.
# usage: several_cards.sh GYRE CARDS [PRESET]
# ROWS (8): rows of 4,096 tokens a card. ONLY: runs whose name begins so, and no rank that dies.
set -euo pipefail
gyre=$1 cards=$2 preset=${3:-gated-deltanet-350m} rows=${ROWS:-8} only=${ONLY:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# run NAME OPTIONS…: trains and prints the median speed of the later steps and the losses.
run() {
  local name=$1
  shift
  [[ $name == "$only"* ]] || return 0
  "$gyre" train --model "$preset" --device cuda:0 --eval-every 0 --checkpoint-every 0 --seed 3 \
    --json --out "$work/$name" "$@" > "$work/$name.jsonl" 2> "$work/$name.err" ||
    { tail -n 3 "$work/$name.err"; return 0; }
  python3 - "$name" "$work/$name.jsonl" <<'PY'
import json, statistics, sys
rows = [json.loads(line) for line in open(sys.argv[2])]
rows = [r for r in rows if "tokens_per_s" in r]
speed = statistics.median(r["tokens_per_s"] for r in rows[len(rows) // 3:])
losses = " ".join(f"{r['train_bits_per_byte']:.5f}" for r in rows[:4])
print(f"{sys.argv[1]:24} {speed:10.0f} tokens/s   first losses {losses}", flush=True)
PY
}

run data-1 --dtype bf16 --batch "$rows" --length 4096 --steps 12
run "data-$cards" --dtype bf16 --batch $((rows * cards)) --length 4096 --steps 12 --devices "$cards"
run same-1 --dtype bf16 --batch $((2 * cards)) --length 2048 --steps 6
run "same-$cards-rows" --dtype bf16 --batch $((2 * cards)) --length 2048 --steps 6 --devices "$cards"
run "same-$cards-parts" --dtype bf16 --batch $((2 * cards)) --length 2048 --steps 6 \
  --devices "$cards" --sequence-parts "$cards"
run long-1 --dtype bf16 --batch 1 --length 262144 --steps 4 --rematerialize
run "long-$cards" --dtype bf16 --batch 1 --length 262144 --steps 4 --rematerialize \
  --devices "$cards" --sequence-parts "$cards"

[ -z "$only" ] || exit 0

# A rank that dies: the others end with its name.
"$gyre" train --model "$preset" --device cuda:0 --devices "$cards" --batch "$cards" --length 2048 \
  --dtype bf16 --steps 1000 --checkpoint-every 5 --eval-every 0 --out "$work/dies" \
  > /dev/null 2> "$work/dies.err" &
starter=$!
until [ -d "$work/dies/checkpoints" ] && ls "$work/dies/checkpoints" | grep -q step; do
  sleep 1
  kill -0 $starter 2> /dev/null || break
done
victim=$(pgrep -P $starter | tail -n 1)
began=$SECONDS
kill -9 "$victim" || true
wait $starter || true
echo "a rank killed: the run ended after $((SECONDS - began)) s"
tail -n 3 "$work/dies.err" | cut -c1-200
"$gyre" train --resume --out "$work/dies" --device cuda:0 --steps 1 --json 2>&1 | tail -n 1 | cut -c1-200
