#!/usr/bin/env python3
"""Fails when a target depends on one that ARCHITECTURE.md does not allow it to."""
import json, subprocess, sys

LEVELS = [
    {"CGyreKernels", "CGyreCorpus", "CGyreCUDALoader", "CGyreCUDASources", "GyreTensors", "GyreTokenizers"},
    {"GyreRecurrence", "GyreCheckpoints", "GyreDistributed"},
    {"GyreCPU", "GyreCUDA", "GyreLayers"},
    {"GyreMixers", "GyrePlatform"},
    {"GyreModels"},
    {"GyreTraining", "GyreInference"},
    {"GyreTasks", "GyreEvolution", "GyreConformance"},
    {"gyre"},
]
BACKENDS = {
    "GyreCPU": {"GyrePlatform"},
    "CGyreKernels": {"GyreCPU"},
    "GyreCUDA": {"GyrePlatform"},
    "CGyreCUDALoader": {"GyreCUDA"},
    "CGyreCUDASources": {"GyreCUDA"},
}
level = {name: i for i, names in enumerate(LEVELS) for name in names}
package = json.loads(subprocess.check_output(["swift", "package", "describe", "--type", "json"]))
bad = []
for target in package["targets"]:
    name = target["name"]
    if target["type"] == "test":
        continue
    if name not in level:
        bad.append(f"{name} has no level in Scripts/check-layers.py")
        continue
    for other in target.get("target_dependencies", []):
        if level.get(other, 99) >= level[name]:
            bad.append(f"{name} (level {level[name]}) imports {other} (level {level.get(other)})")
        if other in BACKENDS and name not in BACKENDS[other]:
            bad.append(f"{name} imports the backend {other}; only {BACKENDS[other]} may")
print("\n".join(bad) or f"layers: {len(level)} targets, all edges allowed")
sys.exit(bool(bad))
