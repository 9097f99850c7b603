"""Recurrent layers on the processor: gyre beside PyTorch, alternating, in one run.

    python Benchmarks/peers/cpu_cells.py --gyre .build/release/gyre [--threads 2] [--rounds 3]

Forward and backward, float32, batch 16, 512 tokens, width 256 and 1024, input projection included.
torch.nn.GRU and LSTM are the rivals of `gru` and `lstm`; min_gru, para_gru and para_lstm have none, so
a loop over time with torch's operations stands for them. Prints medians of the rounds and the ratio.
"""
import argparse
import json
import statistics
import subprocess
import time

import torch

BATCH, LENGTH = 16, 512


def gyre(binary, name, threads):
    out = subprocess.run(
        [binary, "bench", "--only", "layer " + name, "--json", "--threads", str(threads)],
        check=True, capture_output=True, text=True).stdout
    return json.loads(out)["rows"][0]["median_seconds"]


def measure(step, seconds=0.4):
    step()
    times = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < 50):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def library(kind, width):
    layer = getattr(torch.nn, kind.upper())(width, width, batch_first=True)
    x = torch.rand(BATCH, LENGTH, width, requires_grad=True)
    g = torch.ones(BATCH, LENGTH, width)

    def step():
        layer.zero_grad()
        x.grad = None
        layer(x)[0].backward(g)
    return step


def loop(kind, width):
    gates = 2 if kind == "min_gru" else 3
    linear = torch.nn.Linear(width, gates * width)
    a = torch.nn.Parameter(torch.rand(5, width) - 0.5)
    x = torch.rand(BATCH, LENGTH, width, requires_grad=True)
    grad = torch.ones(BATCH, LENGTH, width)

    def run():
        u = linear(x).view(BATCH, LENGTH, gates, width)
        h = torch.zeros(BATCH, width)
        c = torch.zeros(BATCH, width)
        out = []
        for t in range(LENGTH):
            if kind == "min_gru":
                z = torch.sigmoid(u[:, t, 0])
                h = (1 - z) * h + z * u[:, t, 1]
            elif kind == "para_gru":
                z = torch.sigmoid(a[0] * h + u[:, t, 0])
                r = torch.sigmoid(a[1] * h + u[:, t, 1])
                n = torch.tanh(a[2] * (r * h) + u[:, t, 2])
                h = (1 - z) * h + z * n
            else:
                f = torch.sigmoid(a[0] * h + a[3] * c + u[:, t, 0])
                g = torch.tanh(a[2] * h + u[:, t, 2])
                c = f * c + (1 - f) * g
                h = torch.sigmoid(a[1] * h + a[4] * c + u[:, t, 1]) * torch.tanh(c)
            out.append(h)
        return torch.stack(out, 1)

    def step():
        linear.zero_grad()
        a.grad = x.grad = None
        run().backward(grad)
    return step


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--gyre", default=".build/release/gyre")
    p.add_argument("--threads", type=int, default=torch.get_num_threads())
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--only", default="")
    o = p.parse_args()
    torch.set_num_threads(o.threads)
    print(f"torch {torch.__version__}, {o.threads} threads, median of {o.rounds} alternating rounds")
    print(f"{'layer':16}{'gyre ms':>10}{'torch ms':>10}{'ratio':>8}   rival")
    for width in (256, 1024):
        for kind in ("gru", "lstm", "min_gru", "para_gru", "para_lstm"):
            name = f"{kind} {width}"
            if o.only not in name:
                continue
            rival = "torch.nn" if kind in ("gru", "lstm") else "loop"
            step = (library if rival == "torch.nn" else loop)(kind, width)
            ours, theirs = [], []
            for _ in range(o.rounds):
                ours.append(gyre(o.gyre, name, o.threads))
                theirs.append(measure(step))
            a, b = statistics.median(ours), statistics.median(theirs)
            print(f"{name:16}{a * 1e3:10.2f}{b * 1e3:10.2f}{b / a:8.2f}   {rival}", flush=True)


if __name__ == "__main__":
    main()
