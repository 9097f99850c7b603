"""Every engine's kernels beside the public ones on one NVIDIA GPU, in one run: a table for Documentation/gpu-results.md.

Peers (flash-linear-attention, mlstm-kernels) tune their kernels, all at once in processes of their own. One that has
tuned a pass is timed while the others stand still. Ours are checked meanwhile and timed when they have ended. Last
comes the cost a token at length 65,536 against 4,096.

    python3 gpu_table.py [--cubins FOLDER] [--check NAME,NAME] [--peers NAME,NAME] [--without PEER]
                         [--seconds SECONDS] [--parts NAME,NAME] [--json FILE]

Tuning all peers takes five minutes and more on 32 cores: what is not tuned in --seconds has no figure.
"""
import argparse
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time

import torch
import torch.nn.functional as F

import gpu_kernels as ours

BF16 = torch.bfloat16
# B, T, H, K, V; the last is a head of xLSTM 7B's.
SHAPES = [(B, T, H, D, D) for B, T, H, D in ours.SHAPES] + [(4, 2048, 8, 256, 512)]
ONLY = {3: ["mlstm"]}
NAMES = ["hgrn", "simple_gla", "gla", "delta_rule", "gated_delta_rule", "kda", "rwkv7", "mlstm"]
# A peer's name where it is not the engine's; both of mlstm-kernels', and a recurrence without its normaliser.
PEERS = {"mlstm": ["mlstm_xl", "mlstm_limit"]}


def leaf(*shape, scale=1.0):
    return (torch.randn(*shape, device="cuda") * scale).to(BF16).requires_grad_()


def log_gate(*shape):
    return F.logsigmoid(torch.randn(*shape, device="cuda") + 3).requires_grad_()


def problems(chosen, without=""):
    """Peers and shapes."""
    for shape in range(len(SHAPES)):
        for name in reversed(ONLY.get(shape, NAMES)):  # those without tuning first
            for p in PEERS.get(name, [name]):
                if (not chosen or name in chosen.split(",")) and p not in without.split(","):
                    yield p, shape


def peer(name, B, T, H, D, V):
    """A call of the public kernel and its leaves."""
    from importlib import import_module as module

    q, k, v = (leaf(B, T, H, D) for _ in range(3))
    strength = torch.rand(B, T, H, device="cuda", dtype=BF16).requires_grad_()
    if name == "hgrn":
        x, g = leaf(B, T, H * D), log_gate(B, T, H * D)
        f = module("fla.ops.hgrn").chunk_hgrn
        return lambda: f(x, g)[0], [x, g]
    if name in ("gla", "simple_gla"):
        g = log_gate(B, T, H, D) if name == "gla" else log_gate(B, T, H)
        f = getattr(module(f"fla.ops.{name}"), f"chunk_{name}")
        return lambda: f(q, k, v, g)[0], [q, k, v, g]
    if name == "delta_rule":
        f = module("fla.ops.delta_rule").chunk_delta_rule
        unit = F.normalize(k.detach(), dim=-1).requires_grad_()
        return lambda: f(q, unit, v, strength)[0], [q, unit, v, strength]
    if name in ("gated_delta_rule", "kda"):
        g = log_gate(B, T, H, D) if name == "kda" else log_gate(B, T, H)
        f = getattr(module(f"fla.ops.{name}"), f"chunk_{name}")
        return lambda: f(q, k, v, g=g, beta=strength, use_qk_l2norm_in_kernel=True)[0], [q, k, v, g, strength]
    if name == "rwkv7":
        f = module("fla.ops.rwkv7").chunk_rwkv7
        w = (-0.6065306597126334 * torch.sigmoid(torch.randn(B, T, H, D, device="cuda"))).to(BF16).requires_grad_()
        unit = F.normalize(torch.randn(B, T, H, D, device="cuda"), dim=-1)
        a = (-unit).to(BF16).requires_grad_()
        b = (unit * torch.sigmoid(torch.randn_like(unit))).to(BF16).requires_grad_()
        return lambda: f(q, w, k, v, a, b)[0], [q, w, k, v, a, b]
    # mlstm-kernels has heads before tokens.
    q, k, v = leaf(B, H, T, D), leaf(B, H, T, D), leaf(B, H, T, V)
    i, g = leaf(B, H, T), (torch.randn(B, H, T, device="cuda") + 3).to(BF16).requires_grad_()
    if name == "mlstm_xl":
        f = module("mlstm_kernels.torch.chunkwise.triton_xl_chunk").mlstm_chunkwise__xl_chunk
    else:
        f = module("mlstm_kernels.torch.chunkwise.triton_limit_chunk").mlstm_chunkwise__limit_chunk
    return lambda: f(q, k, v, i, g, autocast_kernel_dtype=BF16), [q, k, v, i, g]


def run_peer(name, shape):
    """One peer at one shape, to standard output as JSON. Asks for the card to itself before each measurement."""
    from triton.testing import do_bench

    row = dict(peer=name, shape=shape)

    def measure(key, call, **options):
        call()
        torch.cuda.synchronize()
        print(json.dumps(dict(asks=key)), flush=True)
        sys.stdin.readline()
        row[key] = do_bench(call, warmup=30, return_mode="median", **options)
        print(json.dumps(row), flush=True)

    try:
        call, leaves = peer(name, *SHAPES[shape])
        first = lambda x: x[0] if isinstance(x, tuple) else x
        slope = torch.randn_like(first(call()))
        with torch.no_grad():
            measure("forward", call, rep=120)
        measure("both", lambda: first(call()).backward(slope), rep=200, grad_to_none=leaves)
    except Exception as e:
        row["error"] = f"{type(e).__name__}: {str(e)[:120]}"
        print(json.dumps(row), flush=True)


class Peers(threading.Thread):
    """Tunes all peers at all shapes at once, over all cards, and times each alone; what takes too long is ended."""

    def __init__(self, seconds, problems):
        super().__init__()
        self.rows, self.deadline, self.jobs = {}, time.time() + seconds, []
        cards = torch.cuda.device_count()
        for name, shape in problems:
            card = dict(os.environ, CUDA_VISIBLE_DEVICES=str(len(self.jobs) % cards)) if cards > 1 else None
            self.jobs.append(subprocess.Popen(
                [sys.executable, __file__, "--child", name, "--shape", str(shape)], bufsize=0, env=card,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True))

    def run(self):
        """Lines of all jobs until the deadline."""
        with selectors.DefaultSelector() as ready:
            for job in self.jobs:
                ready.register(job.stdout, selectors.EVENT_READ, job)
            while ready.get_map() and time.time() < self.deadline:
                for key, _ in ready.select(1):
                    if not self.answer(key.data):
                        ready.unregister(key.fileobj)
        for job in self.jobs:
            self.signal(job, signal.SIGKILL)
            job.wait()

    @staticmethod
    def row(job):
        """The next one a job prints; None where it has ended."""
        for text in iter(job.stdout.readline, b""):
            if text.startswith(b"{"):
                return json.loads(text)

    def answer(self, job):
        """Takes a row, and gives the card to a job that asks for it; false where the job has ended."""
        row = self.row(job)
        if row and "asks" in row:
            others = [j for j in self.jobs if j is not job and j.poll() is None]
            for other in others:
                self.signal(other, signal.SIGSTOP)
            time.sleep(0.2)  # what they have under way on the card ends
            job.stdin.write(b"\n")
            row = self.row(job)
            for other in others:
                self.signal(other, signal.SIGCONT)
        if row:
            print(json.dumps(row), flush=True)
            self.rows[row["peer"], row["shape"]] = row
        return row is not None

    @staticmethod
    def signal(job, number):
        try:
            os.killpg(job.pid, number)
        except ProcessLookupError:
            pass


def our_options(name):
    kinds = {n: (rule, kw) for n, rule, kw in ours.timed()}
    return kinds[name]


def time_ours(dev, name, B, T, H, D, V, gradients=True):
    """Milliseconds forward, forward and backward, and their floors by bytes."""
    if name == "hgrn":
        s = ours.Scan(dev, B, T, H * D, BF16)
        floor = ours.size_of(s.decay, s.input, s.h)
        more = ours.size_of(s.decay, s.dh, s.h, s.da, s.du)
        f = ours.milliseconds(s.forward)
        b = ours.milliseconds(lambda: (s.forward(), s.backprop())) if gradients else None
    else:
        rule, kw = our_options(name)
        m = ours.Mixer(dev, rule, B, T, H, D, V, BF16, backward=gradients, **kw)
        floor = ours.size_of(*m.inputs.values(), m.y)
        more = ours.size_of(*m.inputs.values(), m.dy, *m.grads.values())
        b = ours.milliseconds(lambda: (m.forward(), m.backprop())) if gradients else None
        m.forget()
        f = ours.milliseconds(m.forward)
    torch.cuda.empty_cache()
    return f, b, floor / ours.BANDWIDTH, (floor + more) / ours.BANDWIDTH


def cell(x, digits=3):
    return "–" if x is None else f"{x:.{digits}f}"


def ratio(peer, own):
    return "–" if peer is None or own is None else f"{peer / own:.1f}"


def table(own, peers):
    for shape, (B, T, H, D, V) in enumerate(SHAPES):
        print(f"\nB{B} T{T} H{H} K{D} V{V}\n")
        print("| op | forward | of floor | peer | ratio | forward + backward | of floor | peer | ratio |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for name in NAMES:
            if (name, shape) not in own:
                continue
            f, b, floor_f, floor_b = own[name, shape]
            rows = [peers.get((p, shape), {}) for p in PEERS.get(name, [name])]
            best = lambda key: min((r[key] for r in rows if r.get(key)), default=None)
            pf, pb = best("forward"), best("both")
            print(f"| {name} | {cell(f)} | {f / floor_f:.1f} | {cell(pf)} | {ratio(pf, f)} | {cell(b)} | "
                  f"{b / floor_b:.1f} | {cell(pb)} | {ratio(pb, b)} |")


def lengths(dev):
    print("\nCost a token, forward, ns: the same tokens in all, and one sequence\n")
    print("| op | B16 T4096 | B1 T65536 | ratio | B1 T4096 | ratio |\n| --- | --- | --- | --- | --- | --- |")
    for name in ("gla", "gated_delta_rule", "hgrn"):
        ns = {}
        for B, T in ((16, 4096), (1, 65536), (1, 4096)):
            f = time_ours(dev, name, B, T, 16, 64, 64, gradients=False)[0]
            ns[B, T] = f * 1e6 / (B * T)
        long = ns[1, 65536]
        print(f"| {name} | {ns[16, 4096]:.2f} | {long:.2f} | {long / ns[16, 4096]:.2f} | {ns[1, 4096]:.2f} | "
              f"{long / ns[1, 4096]:.2f} |", flush=True)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--cubins")
    ap.add_argument("--check", default="")
    ap.add_argument("--seconds", type=float, default=360, help="for tuning and timing peers")
    ap.add_argument("--peers", default="", help="only those of these engines")
    ap.add_argument("--without", default="", help="peers left out, mlstm_xl where Triton's compiler crashes on it")
    ap.add_argument("--parts", default="", help="also each kernel of these engines")
    ap.add_argument("--json")
    ap.add_argument("--child")
    ap.add_argument("--shape", type=int, default=0)
    o = ap.parse_args()
    if o.child:
        return run_peer(o.child, o.shape)
    peers = Peers(o.seconds, problems(o.peers, o.without))
    peers.start()
    dev = ours.Cuda(o.cubins)
    start = time.time()
    if o.check:
        for label, a, kw in ours.cases(True):
            if any(label == x or x == "all" for x in o.check.split(",")):
                try:
                    m = ours.Mixer(dev, *a, **kw)
                    ours.check(m, label, m.backward)
                except Exception as e:
                    print(f"BAD  {label}: {e}", flush=True)
        print(f"checked in {time.time() - start:.0f} s", flush=True)
    peers.join()
    print(f"peers took {time.time() - start:.0f} s", flush=True)
    own = {}
    for shape, extents in enumerate(SHAPES):
        for name in ONLY.get(shape, NAMES):
            try:
                own[name, shape] = time_ours(dev, name, *extents)
                f, b, ff, fb = own[name, shape]
                print(f"ours {shape} {name}: {f:.4f} {b:.4f} (floors {ff:.4f} {fb:.4f})", flush=True)
            except Exception as e:
                print(f"ours {shape} {name}: {e}", flush=True)
    if o.parts:
        ours.time_all(dev, lambda name: name in o.parts.split(","), False, [0, 1, 2])
    lengths(dev)
    print(torch.cuda.get_device_name())
    table(own, peers.rows)
    if o.json:
        json.dump(dict(ours=[[*k, *v] for k, v in own.items()], peers=list(peers.rows.values())), open(o.json, "w"))
    os._exit(0)


if __name__ == "__main__":
    main()
