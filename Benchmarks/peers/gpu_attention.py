"""Check and time attention by tiles on one Hopper GPU, without the library, next to PyTorch's flash kernel.

Compiles Sources/CGyreCUDASources/cuda/attention_tiles*.cu with NVRTC, compares y and every gradient with
attention in float32 on fresh random inputs, outputs poisoned by NaN and two runs compared bit for bit,
then prints median times (do_bench: second-level cache emptied before each run).

    python3 gpu_attention.py [--check] [--time]
"""
import argparse
import ctypes as C
import glob
import os

import torch
import torch.nn.functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..", "Sources", "CGyreCUDASources")
L, P = C.c_long, C.c_void_p


class Array(C.Structure):
    _fields_ = [("data", P), ("dtype", C.c_int), ("unused", C.c_int)]


class Attention(C.Structure):
    """gyre_attention_args"""
    _fields_ = [(n, L) for n in "batch queries keys heads key_heads key_size value_size window".split()] + [
        ("scale", C.c_float), ("unused", C.c_int)] + [(n, Array) for n in "q k v g".split()] + [
        (n, P) for n in "starts forget first".split()] + [(n, Array) for n in "y sums dy dq dk dv dg".split()] + [
        (n, P) for n in "delta columns rows".split()]


class Tiles(C.Structure):
    """gyre_attention_tile_args"""
    _fields_ = [("maps", C.c_ubyte * 512), ("a", Attention), ("section", C.c_int), ("padded", C.c_int),
                ("exponents", P), ("means", P), ("low", P), ("drawn", P), ("unused", L * 6)]


def compile(name, defines, arch="sm_90a"):
    paths = glob.glob("/opt/*/lib/python3*/site-packages/nvidia/cu13/lib/libnvrtc.so.13")
    for builtins in glob.glob(os.path.dirname(paths[0]) + "/libnvrtc-builtins.so.1*") if paths else []:
        C.CDLL(builtins, mode=C.RTLD_GLOBAL)
    rtc = C.CDLL(paths[0] if paths else "libnvrtc.so.13")
    files = glob.glob(ROOT + "/cuda/*.cuh") + glob.glob(ROOT + "/include/*args*.h")
    names = (C.c_char_p * len(files))(*[os.path.basename(f).encode() for f in files])
    texts = (C.c_char_p * len(files))(*[open(f, "rb").read() for f in files])
    program, size = P(), C.c_size_t()
    rtc.nvrtcCreateProgram(C.byref(program), open(f"{ROOT}/cuda/{name}.cu", "rb").read(), name.encode(),
                           len(files), texts, names)
    options = [f"--gpu-architecture={arch}", "--std=c++17", *defines]
    code = rtc.nvrtcCompileProgram(program, len(options), (C.c_char_p * len(options))(*[o.encode() for o in options]))
    rtc.nvrtcGetProgramLogSize(program, C.byref(size))
    log = C.create_string_buffer(size.value)
    rtc.nvrtcGetProgramLog(program, log)
    if code:
        raise SystemExit(log.value.decode())
    rtc.nvrtcGetCUBINSize(program, C.byref(size))
    image = C.create_string_buffer(size.value)
    rtc.nvrtcGetCUBIN(program, image)
    return image.raw


class Kernels:
    def __init__(self):
        torch.zeros(1, device="cuda")
        self.cu, self.found = C.CDLL("libcuda.so.1"), {}
        self.chip = torch.cuda.get_device_properties(0)

    def ok(self, code):
        if code:
            raise RuntimeError(f"CUDA driver error {code}")

    def function(self, name, size, shared):
        key = (name, size)
        if key not in self.found:
            file = "attention_tiles" if name.endswith("forward") else "attention_tiles_gradient"
            if (file, size) not in self.found:
                image = compile(file, [f"-DSIZE={size}"])
                module = P()
                self.ok(self.cu.cuModuleLoadData(C.byref(module), image))
                self.found[file, size] = module
            f = P()
            self.ok(self.cu.cuModuleGetFunction(C.byref(f), self.found[file, size], name.encode()))
            self.ok(self.cu.cuFuncSetAttribute(f, 8, shared))
            self.found[key] = f
        return self.found[key]

    def run(self, name, size, grid, threads, shared, args):
        f = self.function(name, size, shared)
        pointer = (P * 1)(C.addressof(args))
        self.ok(self.cu.cuLaunchKernel(f, *grid, 1, threads, 1, 1, shared,
                                       P(torch.cuda.current_stream().cuda_stream), pointer, None))

    def map(self, x):
        """A tensor [batch, rows, heads, channels] by boxes of 64 rows and channels of a head."""
        room = (C.c_ubyte * 192)()
        at = (C.addressof(room) + 63) & ~63
        B, T, H, D = x.shape
        dims = (C.c_uint64 * 4)(D, H, T, B)
        strides = (C.c_uint64 * 3)(2 * D, 2 * D * H, 2 * D * H * T)
        self.ok(self.cu.cuTensorMapEncodeTiled(
            P(at), 9, 4, P(x.data_ptr()), dims, strides, (C.c_uint32 * 4)(64, 1, 64, 1),
            (C.c_uint32 * 4)(1, 1, 1, 1), 0, 3, 2, 0))
        return C.string_at(at, 128)


def array(x):
    return Array(x.data_ptr(), {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}[x.dtype], 0)


class Problem:
    """One call's arguments and outputs; `shapes` are those of the launches in AttentionTiles.swift."""

    def __init__(self, kernels, q, k, v, dy, window=0, starts=None, scale=None):
        B, T, H, K = q.shape
        _, N, Hk, V = v.shape
        self.kernels, self.size = kernels, 64 if max(K, V) <= 64 else 128
        small, panels = self.size == 64, self.size // 64
        F_, FS = (3, 4) if small else (2, 2)  # groups and stages, as in gyre_cuda_engine_args.h
        Q, QS = (3, 4) if small else (2, 3)
        KG, KS = (2, 4) if small else (2, 2)
        t = self.t = Tiles()
        self.keep = [q, k, v, dy]
        t.maps[:] = b"".join(kernels.map(x) for x in self.keep)
        a = t.a
        a.batch, a.queries, a.keys, a.heads, a.key_heads, a.key_size, a.value_size = B, T, N, H, Hk, K, V
        a.window, a.scale = window, scale or K ** -0.5
        self.y = torch.empty_like(dy)
        self.sums = torch.empty(B, T, H, device="cuda")
        self.grads = [torch.empty_like(x) for x in (q, k, v)]
        for n, x in zip("q k v dy y sums dq dk dv".split(), [q, k, v, dy, self.y, self.sums, *self.grads]):
            setattr(a, n, array(x))
        if starts is not None:
            places = torch.arange(N, device="cuda", dtype=torch.int32)
            first = torch.where(starts, places, 0).cummax(1).values.int()
            self.keep.append(first[:, None].expand(B, H, N).contiguous())
            a.first = self.keep[-1].data_ptr()
        t.padded = (T + 63) // 64 * 64
        self.keep += [torch.empty(B * H * t.padded, device="cuda") for _ in range(3)]
        t.exponents, t.means, t.low = [x.data_ptr() for x in self.keep[-3:]]
        self.drawn = torch.zeros(3, device="cuda", dtype=torch.int32)
        t.drawn = self.drawn.data_ptr()
        chip = kernels.chip.multi_processor_count
        chunk = 32 << 20
        def grid(n): return min(chip, n), 1
        def section(rows, bytes_): return max(1, min(rows, chunk // bytes_))
        panel = 8192 * panels
        fwd = 1024 + panel * (F_ + FS * 4) + 32 + 32 * FS
        qs = 1024 + panel * 2 * (Q + QS) + 32 + 16 * QS
        ks = 1024 + panel * 2 * (KG + KS) + 768 * KS + 32 + 16 * KS
        near = section(B * H, N * (K + V) * 2 * Hk // H or 1)
        far = section(B * Hk, T * (K + V) * 2 * (H // Hk))
        self.shapes = {
            "forward": (grid(B * H * -(-T // (64 * F_))), 128 * (F_ + 1), fwd, near),
            "rows": ((-(-t.padded * H * (self.size // 8) // 256), B), 256, 0, near),
            "queries": (grid(B * H * -(-T // (64 * Q))), 128 * (Q + 1), qs, near),
            "keys": (grid(B * Hk * -(-N // (64 * KG))), 128 * (KG + 1), ks, far)}

    def run(self, *names):
        if "forward" in names:
            self.drawn[0].zero_()
        if "rows" not in names:
            self.drawn[1:].zero_()
        for n in names:
            g, threads, shared, self.t.section = self.shapes[n]
            self.kernels.run("attention_tiles_" + n, self.size, g, threads, shared, self.t)

    def poison(self):
        for x in [self.y, self.sums, *self.grads, *self.keep[-3:]]:
            x.fill_(float("nan"))

    def results(self):
        return [self.y, self.sums, *self.grads]


def reference(q, k, v, dy, window, starts, scale):
    (B, T, H, K), (_, N, Hk, V) = q.shape, v.shape
    q, k, v = (x.float().detach().requires_grad_() for x in (q, k, v))
    kk, vv = (x.repeat_interleave(H // Hk, 2) for x in (k, v))
    s = torch.einsum("bihc,bjhc->bhij", q, kk) * scale
    i, j = torch.arange(T, device="cuda")[:, None] + N - T, torch.arange(N, device="cuda")[None]
    seen = ((j <= i) & (j > i - (window or N + 1)))[None]
    if starts is not None:
        first = torch.where(starts, j.expand(B, N), 0).cummax(1).values
        seen = seen & (j[None] >= first[:, N - T:, None])
    s = s.masked_fill(~seen[:, None], float("-inf"))
    y = torch.einsum("bhij,bjhc->bihc", s.softmax(-1), vv)
    y.backward(dy.float())
    return [y, s.logsumexp(-1).transpose(1, 2), q.grad, k.grad, v.grad]


CASES = [  # batch, queries, keys, heads, key heads, K, V, window, documents
    (2, 200, 200, 4, 4, 64, 64, 0, False), (1, 100, 100, 4, 4, 24, 32, 0, False),
    (2, 333, 333, 4, 2, 64, 64, 50, True), (1, 70, 140, 4, 1, 72, 80, 0, False),
    (2, 1000, 1000, 4, 4, 128, 128, 0, False), (1, 1100, 1100, 6, 2, 128, 128, 300, True),
    (1, 1500, 1500, 4, 1, 64, 64, 0, True), (1, 129, 515, 4, 4, 64, 64, 200, False),
    (8, 2048, 2048, 16, 16, 64, 64, 0, False), (2, 4096, 4096, 8, 2, 128, 128, 0, True)]


def make(B, T, N, H, Hk, K, V):
    def x(*s): return torch.randn(*s, device="cuda").bfloat16()
    return x(B, T, H, K), x(B, N, Hk, K), x(B, N, Hk, V), x(B, T, H, V)


def check(kernels):
    worst = 0
    for n, (B, T, N, H, Hk, K, V, window, documents) in enumerate(CASES):
        torch.manual_seed(n)
        x = make(B, T, N, H, Hk, K, V)
        starts = torch.rand(B, N, device="cuda") < 0.01 if documents else None
        p = Problem(kernels, *x, window=window, starts=starts)
        steps = ["forward", "rows", "keys", "queries"]
        p.poison()
        p.run(*steps)
        torch.cuda.synchronize()
        got = [g.clone() for g in p.results()]
        p.poison()
        p.run(*steps)
        same = all(torch.equal(g, h) for g, h in zip(got, p.results()))
        want = [torch.cat(w) for w in zip(*[
            reference(*[u[b:b + 1] for u in x], window, None if starts is None else starts[b:b + 1], K ** -0.5)
            for b in range(B)])]
        errors = {m: ((g.float() - w).norm() / w.norm()).item() for m, g, w in zip("y sums dq dk dv".split(), got, want)}
        bad = [m for m, e in errors.items() if not e < (1e-5 if m == "sums" else 1e-2)]
        worst = max(worst, *[e for m, e in errors.items() if m != "sums"])
        print(f"{'ok    ' if same and not bad else 'FAILED'} B{B} T{T}/{N} H{H}/{Hk} K{K} V{V} window {window} "
              f"documents {documents}: " + " ".join(f"{m} {e:.1e}" for m, e in errors.items())
              + ("" if same else " DIFFERS BETWEEN RUNS"), flush=True)
    return worst


SHAPES = [(8, 2048, 16, 16, 64), (8, 2048, 8, 8, 128), (1, 16384, 16, 16, 128), (4, 4096, 16, 16, 64)]
GROUPED = [(4, 4096, 16, 4, 64), (4, 4096, 16, 4, 128)]


def flops(B, T, H, D):
    return 2.0 * B * H * T * T * D  # of the forward pass under the causal mask


def bench(call):
    from triton.testing import do_bench
    return do_bench(call, warmup=100, rep=150, return_mode="median")


def times(kernels, shapes=SHAPES, window=0):
    for B, T, H, Hk, D in shapes:
        p = Problem(kernels, *make(B, T, T, H, Hk, D, D), window=window)
        p.run("forward")
        parts = {n: bench(lambda: p.run(n)) for n in p.shapes}
        parts["forward+backward"] = bench(lambda: p.run("forward", "rows", "keys", "queries"))
        print(f"B{B} T{T} H{H}/{Hk} D{D} window {window}: "
              + " ".join(f"{n} {m:.4f}" for n, m in parts.items())
              + " | TFLOP/s " + " ".join(
                  f"{n} {w * flops(B, T, H, D) / parts[n] / 1e9:.0f}"
                  for n, w in (("forward", 1), ("queries", 1.5), ("keys", 2), ("forward+backward", 3.5))), flush=True)


def peer(shapes=SHAPES):
    for B, T, H, Hk, D in shapes:
        q, k, v, dy = (x.transpose(1, 2).contiguous().requires_grad_() for x in make(B, T, T, H, Hk, D, D))
        for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION"):
            with torch.nn.attention.sdpa_kernel(getattr(torch.nn.attention.SDPBackend, backend)):
                def call():
                    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H != Hk)
                def both():
                    for x in (q, k, v):
                        x.grad = None
                    call().backward(dy)
                with torch.no_grad():
                    forward = bench(call)
                print(f"B{B} T{T} H{H}/{Hk} D{D}: torch {backend} forward {forward:.4f} "
                      f"forward+backward {bench(both):.4f}", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--check", action="store_true")
    p.add_argument("--time", action="store_true")
    o = p.parse_args()
    kernels = Kernels()
    if o.check:
        print("worst", check(kernels))
    if o.time:
        times(kernels)
        times(kernels, SHAPES[2:], window=1024)
        times(kernels, GROUPED)
        peer()
        peer(GROUPED)


if __name__ == "__main__":
    main()
