#!/usr/bin/env python3
"""A reward for `gyre evolve --reward "python3 Examples/reward/vowels.py"`: the share of vowels.

One JSON object a line comes in, {"id", "generation", "member", "prompt", "completion"}; each is answered by
{"id", "score"}, in any order. What a scorer prints for people belongs on standard error.
"""
import json
import sys

for line in sys.stdin:
    request = json.loads(line)
    letters = [c for c in request["completion"].lower() if c.isalpha()]
    score = sum(c in "aeiou" for c in letters) / max(len(letters), 1)
    print(json.dumps({"id": request["id"], "score": score}), flush=True)
