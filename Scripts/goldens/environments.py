#!/usr/bin/env python3
"""Trajectories of Gymnasium's classic-control environments: Tests/Fixtures/environments/gymnasium.json.

usage: environments.py OUT.json    (needs gymnasium 1.2)

For each environment: starts, actions, and after each action the observation, the reward and whether the
episode ended.
"""
import json
import sys
import gymnasium
import numpy as np

NAMES = {
    "cartpole": "CartPole-v1", "pendulum": "Pendulum-v1", "mountaincar": "MountainCar-v0", "acrobot": "Acrobot-v1",
}


def episode(name, seed, steps):
    env = gymnasium.make(NAMES[name]).unwrapped
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    start = [float(x) for x in env.state]
    rows = []
    for t in range(steps):
        if name == "pendulum":
            action = float(rng.uniform(-1.3, 1.3))
            out = env.step(np.array([2 * action]))
        else:
            # Mostly with the motion, so that episodes reach their ends.
            velocity = {"cartpole": 3, "mountaincar": 1, "acrobot": 3}[name]
            push = int(env.state[velocity] > 0) * (env.action_space.n - 1)
            action = push if rng.random() < 0.8 else int(rng.integers(env.action_space.n))
            out = env.step(action)
        rows.append({
            "action": float(action), "observation": [float(x) for x in out[0]], "reward": float(out[1]),
            "ends": bool(out[2]),
        })
        if out[2]:
            break
    return {"start": start, "steps": rows}


data = {name: [episode(name, seed, 160) for seed in range(3)] for name in NAMES}
with open(sys.argv[1], "w") as file:
    json.dump(data, file)
for name, episodes in data.items():
    print(name, [(len(e["steps"]), e["steps"][-1]["ends"]) for e in episodes])
