#!/usr/bin/env bash
# Builds the documentation of every library. Dead links and parameters that do not exist are errors;
# parameters that need no words are not.
set -euo pipefail
cd "$(dirname "$0")/.."
export GYRE_DOCUMENTATION=1
targets=${*:-GyreTensors GyreRecurrence GyreLayers GyreMixers GyreTokenizers GyreCheckpoints GyreModels GyreTraining GyreTasks GyreInference GyreConformance GyreEvolution GyreDistributed GyrePlatform}
mkdir -p .build/documentation
for target in $targets; do
  log=$(swift package --allow-writing-to-directory .build/documentation generate-documentation \
    --target "$target" --output-path ".build/documentation/$target" 2>&1) || {
    echo "$log" | tail -n 40
    exit 1
  }
  found=$(echo "$log" | grep -A1 -E "^(warning|error):" | grep -v "is missing documentation" || true)
  if echo "$found" | grep -qE "^(warning|error):"; then
    echo "$target:"
    echo "$found"
    exit 1
  fi
  echo "documentation: $target"
done
