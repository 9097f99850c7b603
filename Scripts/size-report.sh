#!/usr/bin/env bash
# The longest source files; fails over 600 lines.
set -eu
cd "$(dirname "$0")/.."
git ls-files 'Sources/*.swift' 'Sources/*.c' 'Sources/*.h' 'Sources/*.inc' 'Sources/*.cu' 'Sources/*.cuh' 'Tests/*.swift' \
  | xargs wc -l | awk '$2 != "total"' | sort -rn > /tmp/gyre-sizes.$$
trap 'rm -f /tmp/gyre-sizes.$$' EXIT
printf 'lines  file (longest ten of %s)\n' "$(wc -l < /tmp/gyre-sizes.$$)"
head -10 /tmp/gyre-sizes.$$
awk '$1 > 600 { print "over 600 lines: " $2; bad = 1 } END { exit bad }' /tmp/gyre-sizes.$$
