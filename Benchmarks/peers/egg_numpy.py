"""EGG's forward pass and update in NumPy, all members at once: what `gyre evolve` is timed against.

usage: egg_numpy.py VECTORS.safetensors            checks this file against a vector file
       egg_numpy.py --time [--width 64 --layers 2 --members 1024 --tokens 16]
       egg_numpy.py --gyre .build/release/gyre     both over `gyre bench --evolution`, floor 20 times

Products are float32 matrix products of whole numbers below 2^24, which are exact and run in BLAS:
NumPy's own integer products are some twenty times slower.
"""
import argparse
import math
import time
import numpy as np

EXP2 = np.array([int(16 * 2 ** (i / 16)) for i in range(256)], np.int64)
LOG2 = np.array([math.ceil(16 * 2 ** (v / 16)) for v in range(400)], np.float64)


def clip(v):
    return np.clip(v, -127, 127)


class Model:
    def __init__(self, weights, noise, shift, pairs):
        self.w, self.n, self.shift = weights, noise, 4 + shift
        self.f = {k: v.astype(np.float32).T.copy() for k, v in weights.items() if v.ndim == 2}
        self.pairs = pairs  # member -> pair, or None: no perturbation
        if pairs is not None:
            sign = np.where(np.arange(len(pairs)) % 2 == 0, 1, -1)[:, None].astype(np.int32)
            self.a, self.b, self.v = {}, {}, {}
            for name, w in weights.items():
                z = noise[name].astype(np.int32)[pairs]
                if w.ndim == 2:
                    self.b[name], self.a[name] = z[:, : w.shape[1]], z[:, w.shape[1] :] * sign
                else:
                    self.v[name] = clip(w + ((sign * z[:, ::2] * z[:, 1::2]) >> self.shift))

    def vector(self, name):
        return self.w[name].astype(np.int32)[None] if self.pairs is None else self.v[name]

    def product(self, x, name):
        y = (x.astype(np.float32) @ self.f[name]).astype(np.int32)
        if self.pairs is not None:
            z = (x * self.b[name]).sum(1, keepdims=True)
            y += (z * self.a[name]) >> self.shift
        return clip(y // (16 * math.isqrt(self.w[name].shape[1])))

    def norm(self, x, name):
        m = np.maximum(np.abs(x).sum(1, keepdims=True), 1) // x.shape[1]
        p = x * self.vector(name)
        return np.where(m > 0, clip(p // np.maximum(m, 1)), np.where(p != 0, -2, -1))

    def step(self, token, state):
        state[token == 0] = 0
        x = self.w["emb"].astype(np.int32)[token]
        if self.pairs is not None:
            rows = np.arange(len(token))
            x = clip(x + ((self.a["emb"][rows, token][:, None] * self.b["emb"]) >> self.shift))
        for l in range(state.shape[1]):
            p = f"layers.{l}."
            s, u = state[:, l], self.norm(x, p + "ln1")
            f = clip(self.product(u, p + "att.Wf") + self.product(s, p + "att.Uf") + self.vector(p + "att.bf"))
            g = ((f + 127) * s) >> 8
            h = clip(self.product(u, p + "att.Wh") + self.product(g, p + "att.Uh") + self.vector(p + "att.bh"))
            state[:, l] = s + (((f + 127) * (h - s)) >> 8)
            x = clip(x + state[:, l])
            u = self.norm(x, p + "ln2")
            x = clip(x + self.product(self.product(u, p + "mlp.up"), p + "mlp.down"))
        return self.product(self.norm(x, "ln_out"), "head")

    def run(self, tokens, state):
        """tokens [members, T + 1], state [members, layers, D] -> fitness, state"""
        state, total = state.astype(np.int32), 0
        rows = np.arange(len(tokens))
        for t in range(tokens.shape[1] - 1):
            y = self.step(tokens[:, t].astype(np.int64), state) + 128
            s = EXP2[y].sum(1)
            total = total + y[rows, tokens[:, t + 1]] - (np.searchsorted(LOG2, s, side="right") - 1)
        return total, state


def update(weights, noise, signs, threshold):
    limit = 16 * threshold * math.isqrt(len(signs))
    new = {}
    for name, w in weights.items():
        z = noise[name].astype(np.float64)
        f = signs.astype(np.float64)[:, None]
        if w.ndim == 2:
            votes = (f * z[:, w.shape[1] :]).T @ z[:, : w.shape[1]]
        else:
            votes = (f * z[:, ::2] * z[:, 1::2]).sum(0)
        step = np.where(votes > 0, 1, -1) * (np.abs(votes) >= limit)
        new[name] = clip(w.astype(np.int32) + step).astype(np.int8)
    return new


def check(path):
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        meta, t = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}
    weights = {k[7:]: v for k, v in t.items() if k.startswith("weight.")}
    noise = {k[6:]: v for k, v in t.items() if k.startswith("noise.")}
    members = len(t["tokens"])
    shift = int(meta["sigma_shift"])
    fitness, state = Model(weights, noise, shift, np.arange(members) // 2).run(t["tokens"], t["state.initial"])
    plain, plain_state = Model(weights, noise, shift, None).run(t["tokens"], t["state.initial"])
    new = update(weights, noise, np.sign(fitness[::2] - fitness[1::2]), int(meta["threshold"]))
    for what, a, b in [
        ("fitness", fitness, t["fitness"]), ("state", state, t["state.final"]),
        ("unperturbed fitness", plain, t["unperturbed.fitness"]),
        ("unperturbed state", plain_state, t["unperturbed.state"]),
        ("signs", np.sign(fitness[::2] - fitness[1::2]), t["pair_sign"]),
    ] + [("updated " + k, v, t["updated." + k]) for k, v in new.items()]:
        print(f"{what}: {int((a != b).sum())} of {b.size} differ")


def random_model(width, layers, rng):
    def matrix(m, n):
        return np.rint(16 * rng.standard_normal((m, n))).clip(-127, 127).astype(np.int8)

    w = {"emb": matrix(256, width), "head": matrix(256, width), "ln_out": np.full(width, 16, np.int8)}
    for l in range(layers):
        for name in ("Wf", "Uf", "Wh", "Uh"):
            w[f"layers.{l}.att.{name}"] = matrix(width, width)
        w[f"layers.{l}.mlp.up"], w[f"layers.{l}.mlp.down"] = matrix(4 * width, width), matrix(width, 4 * width)
        for name, value in (("ln1", 16), ("ln2", 16), ("att.bf", 0), ("att.bh", 0)):
            w[f"layers.{l}.{name}"] = np.full(width, value, np.int8)
    return w


def timed(width, layers, members, tokens):
    rng = np.random.default_rng(0)
    weights = random_model(width, layers, rng)
    text = rng.integers(1, 256, (members, tokens + 1), dtype=np.uint8)
    state = np.zeros((members, layers, width), np.int8)
    start = time.perf_counter()
    noise = {
        k: np.trunc(16 * rng.standard_normal((members // 2, sum(v.shape) if v.ndim == 2 else 2 * v.size), np.float32)).astype(np.int8)
        for k, v in weights.items()
    }
    drawn = time.perf_counter()
    fitness, _ = Model(weights, noise, 4, np.arange(members) // 2).run(text, state)
    scored = time.perf_counter()
    update(weights, noise, np.sign(fitness[::2] - fitness[1::2]), 9)
    end = time.perf_counter()
    print(
        f"width {width}, {layers} layers, {members} members x {tokens} tokens: noise {drawn - start:.3f} s, "
        f"forward {scored - drawn:.3f} s, update {end - scored:.3f} s: "
        f"{members * tokens / (end - start):.0f} tokens/s, forward alone {members * tokens / (scored - drawn):.0f}"
    )

    return members * tokens / (end - start)


def against(program):
    """Rates of `gyre bench --evolution` over those of this file, on the same sizes."""
    import json
    import re
    import subprocess

    text = subprocess.run(
        [program, "bench", "--evolution", "--only", "egg", "--json"], check=True, capture_output=True, text=True
    ).stdout
    size = re.compile(r"egg, width (\d+), (\d+) layers, (\d+) members × (\d+) bytes: training step")
    for row in json.loads(text)["rows"]:
        if match := size.match(row["name"]):
            ratio = row["value"] / timed(*map(int, match.groups()))
            print(f"gyre: {row['value']:.0f} tokens/s, {ratio:.0f} times NumPy (floor 20)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("vectors", nargs="?")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--gyre")
    for name, value in (("width", 64), ("layers", 2), ("members", 1024), ("tokens", 16)):
        parser.add_argument("--" + name, type=int, default=value)
    a = parser.parse_args()
    if a.vectors:
        check(a.vectors)
    if a.time:
        timed(a.width, a.layers, a.members, a.tokens)
    if a.gyre:
        against(a.gyre)
