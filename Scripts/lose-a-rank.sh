#!/usr/bin/env bash
# Kills one of two ranks of `gyre evolve` in the middle of a run (SIGKILL) and checks what the other does:
# with --on-failure drop it goes on alone, with stop it ends with the rank's name and can be resumed.
# Either way the model must have the bits of a run in one process.
#
#     Scripts/lose-a-rank.sh GYRE [DEVICE]      DEVICE: cpu, or cuda for a card a rank
#
# GENERATIONS (300) sets the length of the runs.
set -euo pipefail
gyre=${1:?usage: $0 GYRE [DEVICE]} device=${2:-cpu} generations=${GENERATIONS:-300}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
one=$device
[ "$device" = cuda ] && one=cuda:0

# The process of a rank whose run writes to a folder.
process_of() {
  local p
  for p in /proc/[0-9]*; do
    if { tr '\0' '\n' <"$p/environ" | grep -qx "GYRE_RANK=$1" &&
      tr '\0' '\n' <"$p/cmdline" | grep -qx "$2"; } 2>/dev/null; then
      basename "$p"
      return
    fi
  done
}

lines() { if [ -f "$1" ]; then wc -l <"$1"; else echo 0; fi; }

# Starts a run of two ranks, kills rank 1 after ten generations; the exit status.
interrupted() {
  local out=$1 failure=$2
  shift 2
  "$gyre" evolve "$@" --device "$device" --workers 2 --on-failure "$failure" --out "$out" --json \
    >/dev/null 2>"$out.log" &
  local run=$!
  while [ "$(lines "$out/metrics.jsonl")" -lt 10 ] && kill -0 $run 2>/dev/null; do sleep 0.02; done
  local victim
  victim=$(process_of 1 "$out")
  [ -n "$victim" ] || { cat "$out.log"; echo "rank 1 is not there; more GENERATIONS?" >&2; exit 1; }
  kill -9 "$victim"
  echo "  $failure: killed rank 1 after generation $(lines "$out/metrics.jsonl")" >&2
  local status=0
  wait $run || status=$?
  echo $status
}

check() {
  if cmp -s "$1/model.safetensors" "$2/model.safetensors"; then echo "  $3: equal bits"
  else echo "  $3: DIFFERENT"; exit 1; fi
}

for kind in egg float; do
  if [ $kind = egg ]; then
    options=(--model egg --population 1024 --width 32 --layers 1)
  else
    options=(--environment cartpole --population 64 --chunk-rows 32 --update shared)
  fi
  options+=(--generations "$generations" --checkpoint-every 5 --eval-every "$generations" --seed 3)
  echo "$kind:"
  first=("${options[@]}")
  "$gyre" evolve "${first[@]}" --device "$one" --out "$folder/$kind-one" --json >/dev/null

  status=$(interrupted "$folder/$kind-drop" drop "${options[@]}")
  [ "$status" = 0 ] || { cat "$folder/$kind-drop.log"; echo "drop: ended with $status"; exit 1; }
  grep -o 'worker 1 .*' "$folder/$kind-drop.log" | sed 's/^/    said: /'
  check "$folder/$kind-one" "$folder/$kind-drop" drop

  status=$(interrupted "$folder/$kind-stop" stop "${options[@]}")
  [ "$status" != 0 ] || { echo "stop: ended well"; exit 1; }
  grep -m 1 -o 'worker 1 .*' "$folder/$kind-stop.log" | sed 's/^/    said: /'
  "$gyre" evolve --resume --device "$one" --out "$folder/$kind-stop" --json >/dev/null
  check "$folder/$kind-one" "$folder/$kind-stop" "stop, resumed"
done
