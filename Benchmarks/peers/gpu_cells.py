"""Check and time the recurrent cells with weights in registers on one NVIDIA GPU, without the library.

Compiles cell_team.cu and cell_team_gradient.cu with NVRTC, compares states and all gradients with the
recurrence in float64 (autograd, operands of the recurrent product rounded to bfloat16) on fresh random
inputs, two runs bit for bit, then prints medians of CUDA events beside cuDNN's, input product and
weights' gradients included on both sides.

    python3 gpu_cells.py [--check] [--time]
"""
import argparse
import ctypes as C
import glob
import os

import torch

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "Sources", "CGyreCUDASources")
CELLS = ["elman_tanh", "elman_relu", "gru", "gru_original", "lstm", "slstm"]
GATES = [1, 1, 3, 3, 4, 4]


class Array(C.Structure):
    _fields_ = [("data", C.c_void_p), ("dtype", C.c_int), ("unused", C.c_int)]


class Args(C.Structure):
    """gyre_cell_team_args"""
    _fields_ = (
        [(n, C.c_long) for n in "batch tokens heads units first last first_pair".split()]
        + [(n, C.c_void_p) for n in "weight exchange exchange2 reset".split()]
        + [("xw", Array), ("bias", Array), ("start", Array * 4), ("final", Array * 4)]
        + [(n, Array) for n in "y gates cells normalizers stabilizers".split()]
        + [("given", Array * 4)] + [(n, Array) for n in "dy dxw previous second".split()])


def array(t):
    if t is None:
        return Array(None, 0, 0)
    return Array(t.data_ptr(), {torch.float32: 0, torch.bfloat16: 1}[t.dtype], 0)


def four(*ts):
    return (Array * 4)(*[array(t) for t in (list(ts) + [None] * 4)[:4]])


def ok(code):
    if code:
        raise RuntimeError(f"CUDA driver error {code}")


class Kernels:
    def __init__(self, defines=()):
        self.rtc, self.cu = C.CDLL("libnvrtc.so.13"), C.CDLL("libcuda.so.1")
        self.headers = {os.path.basename(f): open(f, "rb").read()
                        for f in glob.glob(ROOT + "/cuda/*.cuh") + glob.glob(ROOT + "/include/*args*.h")}
        self.functions, self.defines = {}, list(defines)

    def function(self, file, name, defines):
        key = (file, name, *defines)
        if key not in self.functions:
            program, size = C.c_void_p(), C.c_size_t()
            names = (C.c_char_p * len(self.headers))(*[h.encode() for h in self.headers])
            texts = (C.c_char_p * len(self.headers))(*self.headers.values())
            text = open(f"{ROOT}/cuda/{file}.cu", "rb").read()
            self.rtc.nvrtcCreateProgram(C.byref(program), text, file.encode(), len(names), texts, names)
            major, minor = torch.cuda.get_device_capability()
            options = [f"--gpu-architecture=sm_{major}{minor}" + ("a" if major == 9 else ""), "--std=c++17",
                       *defines, *self.defines]
            code = self.rtc.nvrtcCompileProgram(
                program, len(options), (C.c_char_p * len(options))(*[o.encode() for o in options]))
            self.rtc.nvrtcGetProgramLogSize(program, C.byref(size))
            log = C.create_string_buffer(size.value)
            self.rtc.nvrtcGetProgramLog(program, log)
            if code:
                raise SystemExit(log.value.decode())
            self.rtc.nvrtcGetCUBINSize(program, C.byref(size))
            image = C.create_string_buffer(size.value)
            self.rtc.nvrtcGetCUBIN(program, image)
            module, f = C.c_void_p(), C.c_void_p()
            ok(self.cu.cuModuleLoadData(C.byref(module), image.raw))
            ok(self.cu.cuModuleGetFunction(C.byref(f), module, name.encode()))
            self.functions[key] = f
        return self.functions[key]

    def together(self, f, grid, threads, args):
        pointer = (C.c_void_p * 1)(C.cast(C.pointer(args), C.c_void_p))
        stream = C.c_void_p(torch.cuda.current_stream().cuda_stream)
        ok(self.cu.cuLaunchCooperativeKernel(f, *grid, threads, 1, 1, 0, stream, pointer))


def groups(operands, warps):
    return -(-(-(-operands // 32)) // warps)


class Team:
    """One shape, its buffers, and the launches as Kernels+CellTeams.swift makes them."""
    def __init__(self, kernels, cell, B, T, heads, units, dtype):
        self.k, self.cell, self.shape = kernels, cell, (B, T, heads, units)
        H, G = heads * units, GATES[cell]
        self.tiles = 1 if B <= 8 else 2
        rows = 8 * self.tiles
        self.pairs = heads * -(-B // rows)
        new = lambda *s, dtype=torch.float32: torch.full(s, float("nan"), device="cuda", dtype=dtype)
        self.y, self.gates, self.cells = new(B, T, H), new(B, T, G, H), new(B, T, H)
        self.n, self.m = new(B, T, H), new(B, T, H)
        self.final = [new(B, H) for _ in range(4)]
        self.dxw, self.previous, self.second = new(B, T, G, H, dtype=dtype), new(B, T, H, dtype=dtype), new(B, T, H, dtype=dtype)
        self.d0 = [new(B, H) for _ in range(4)]
        self.back = 2 * units if cell == 3 else G * units
        buffer = lambda operands: torch.empty(self.pairs * T * -(-operands // 32) * self.tiles * 512, dtype=torch.uint8, device="cuda")
        self.e1, self.e2 = buffer(self.back), buffer(units) if cell == 3 else None
        d = [f"-DGYRE_CELL={cell}", f"-DGYRE_TILES={self.tiles}"]
        self.f = kernels.function("cell_team", "cell_team_forward", d + [f"-DGYRE_GROUPS={groups(units, 8)}"])
        self.b = kernels.function("cell_team_gradient", "cell_team_backward", d + [f"-DGYRE_GROUPS={groups(self.back, 16)}"])

    def args(self, R, reset, operands):
        B, T, heads, units = self.shape
        a = Args(B, T, heads, units, 0, T, 0, R.data_ptr(), self.e1.data_ptr())
        n = self.pairs * T * -(-operands // 32) * self.tiles * 512
        self.e1[:n].fill_(255)
        if self.e2 is not None:
            self.e2.fill_(255)
            a.exchange2 = self.e2.data_ptr()
        a.reset = reset.data_ptr() if reset is not None else None
        a.y, a.gates, a.cells = array(self.y), array(self.gates if GATES[self.cell] > 1 else None), array(self.cells)
        a.normalizers, a.stabilizers = array(self.n), array(self.m)
        if self.cell in (0, 1, 3):
            a.cells = Array()
        return a

    def forward(self, xw, R, bias, start, reset):
        a = self.args(R, reset, self.shape[3])
        a.xw, a.bias, a.start, a.final = array(xw), array(bias), four(*start), four(*self.final)
        self.k.together(self.f, (self.shape[3] // 8, self.pairs, 1), 256, a)

    def backward(self, R, given, dy, dfinal, reset):
        a = self.args(R, reset, self.back)
        a.start, a.final, a.given = four(*dfinal), four(*self.d0), four(*given)
        a.dy, a.dxw, a.previous, a.second = array(dy), array(self.dxw), array(self.previous), array(self.second)
        if self.cell not in (2, 3):
            a.second = Array()
        self.k.together(self.b, (-(-self.shape[3] // 16), self.pairs, 1), 512, a)


def rounded(x):
    return x + (x.detach().to(torch.bfloat16).double() - x.detach())


def reference(cell, xw, R, bias, h, c, n, m, reset, heads):
    B, T, G, H = xw.shape
    units = H // heads
    ys, gates = [], []
    def product(h, a, b):
        # R: [heads, G, units, units]
        return torch.einsum("hgij,bhj->bghi", R[:, a:b], rounded(h).view(B, heads, units)).reshape(B, b - a, H)
    for t in range(T):
        if reset is not None:
            keep = (reset[:, t] == 0).double()[:, None]
            h, c, n, m = h * keep, c * keep, n * keep, m * keep
        x = xw[:, t] + bias
        if cell <= 1:
            a = x[:, 0] + product(h, 0, 1)[:, 0]
            h = torch.tanh(a) if cell == 0 else torch.relu(a)
        elif cell == 2:
            p = product(h, 0, 3)
            r, z = torch.sigmoid(x[:, 0] + p[:, 0]), torch.sigmoid(x[:, 1] + p[:, 1])
            k = torch.tanh(xw[:, t, 2] + r * (p[:, 2] + bias[2]))
            h = (1 - z) * k + z * h
        elif cell == 3:
            p = product(h, 0, 2)
            r, z = torch.sigmoid(x[:, 0] + p[:, 0]), torch.sigmoid(x[:, 1] + p[:, 1])
            k = torch.tanh(x[:, 2] + product(r * h, 2, 3)[:, 0])
            h = (1 - z) * k + z * h
        else:
            a = x + product(h, 0, 4)
            if cell == 4:
                i, f, z, o = torch.sigmoid(a[:, 0]), torch.sigmoid(a[:, 1]), torch.tanh(a[:, 2]), torch.sigmoid(a[:, 3])
                c = f * c + i * z
                h = o * torch.tanh(c)
            else:
                carried = torch.nn.functional.logsigmoid(a[:, 1]) + m
                new = torch.where(n == 0, a[:, 0], torch.maximum(carried, a[:, 0])).detach()
                i, f = torch.exp(a[:, 0] - new), torch.where(n == 0, torch.zeros_like(carried), torch.exp(carried - new))
                c = f * c + i * torch.tanh(a[:, 2])
                n = f * n + i
                m = new
                h = torch.sigmoid(a[:, 3]) * c / n
        ys.append(h)
    return torch.stack(ys, 1), h, c, n, m


def error(y, r):
    return ((y.double() - r).norm() / r.norm().clamp(min=1e-30)).item()


def check(kernels):
    torch.manual_seed(1)
    worst = 0.0
    for B, T, heads, units in [(3, 9, 1, 8), (5, 33, 3, 64), (9, 14, 2, 104), (16, 40, 1, 768), (33, 12, 2, 256), (2, 17, 2, 136)]:
        for cell in range(6):
            H, G = heads * units, GATES[cell]
            rand = lambda *s, scale=1.0: torch.randn(*s, device="cuda", dtype=torch.float64) * scale
            xw, R = rand(B, T, G, H).to(torch.bfloat16), rand(heads, G, units, units, scale=units ** -0.5).to(torch.bfloat16)
            bias = rand(G, H, scale=0.3).float()
            h0, c0, n0, m0 = rand(B, H, scale=0.5).float(), rand(B, H).float(), rand(B, H).abs().float() + 0.5, rand(B, H).float()
            reset = (torch.rand(B, T, device="cuda") < 0.1).int()
            dy, dh, dc = rand(B, T, H).float(), rand(B, H).float(), rand(B, H).float()
            leaves = [t.double().requires_grad_() for t in (xw, R, bias, h0, c0, n0)]
            y, h, c, n, m = reference(cell, *leaves[:3], *leaves[3:], m0.double(), reset, heads)
            loss = (y * dy).sum() + (h * dh).sum() + ((c * dc).sum() if cell >= 4 else 0)
            grads = torch.autograd.grad(loss, leaves, allow_unused=True)
            team = Team(kernels, cell, B, T, heads, units, torch.float32)
            start = [h0] + ([c0] if cell >= 4 else []) + ([n0, m0] if cell == 5 else [])
            dfinal = [dh] + ([dc] if cell >= 4 else [])
            outs = None
            for _ in range(2):
                team.forward(xw, R, bias, start, reset)
                team.backward(R, start, dy, dfinal, reset)
                torch.cuda.synchronize()
                now = [t.clone() for t in (team.y, team.dxw, team.previous, *team.d0[:len(start)])]
                same = outs is None or all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(outs, now))
                outs = now
            e = {"y": error(team.y, y), "h": error(team.final[0], h), "dx": error(team.dxw, grads[0]), "dh0": error(team.d0[0], grads[3])}
            if cell >= 4:
                e["c"], e["dc0"] = error(team.final[1], c), error(team.d0[1], grads[4])
            if cell == 5:
                e["n"], e["m"], e["dn0"] = error(team.final[2], n), error(team.final[3], m), error(team.d0[2], grads[5])
            bad = not same or any(not v < 2e-2 for v in e.values())
            worst = max([worst, *e.values()])
            print(f"{CELLS[cell]:13} B{B} T{T} {heads}x{units}", "FAILED" if bad else "ok", "" if same else "RUNS DIFFER",
                  " ".join(f"{k} {v:.1e}" for k, v in e.items()), flush=True)
    print(f"largest error {worst:.2e}")


def median(f, n=20):
    for _ in range(3):
        f()
    times = []
    for _ in range(n):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        f()
        b.record()
        b.synchronize()
        times.append(a.elapsed_time(b))
    return sorted(times)[n // 2]


def measure(kernels, peers=True):
    print(f"{'cell':13} {'shape':24} {'kernel f':>9} {'kernel b':>9} {'layer f':>9} {'layer f+b':>9} {'cuDNN f':>9} {'cuDNN f+b':>9}")
    for cell, B, T, heads, units in [
            (4, 16, 1024, 1, 768), (2, 16, 1024, 1, 768), (3, 16, 1024, 1, 768), (0, 16, 1024, 1, 768), (5, 16, 1024, 12, 64), (5, 16, 1024, 6, 128),
            (5, 16, 1024, 4, 192), (5, 16, 1024, 4, 256), (4, 16, 1024, 12, 64), (4, 64, 512, 1, 768), (4, 1, 1024, 1, 768), (4, 16, 1024, 1, 1024), (2, 16, 1024, 1, 256)]:
        H, G = heads * units, GATES[cell]
        b16 = dict(device="cuda", dtype=torch.bfloat16)
        x, W = torch.randn(B, T, H, **b16), torch.randn(G * H, H, **b16) * H ** -0.5
        R = torch.randn(heads, G, units, units, **b16) * units ** -0.5
        dy = torch.randn(B, T, H, device="cuda")
        try:
            team = Team(kernels, cell, B, T, heads, units, torch.bfloat16)
            limit = 132 * 2 // (units // 8)
            if team.pairs > limit or team.pairs > 132 // -(-units // 16):
                print(f"{CELLS[cell]:13} B{B} T{T} {heads}x{units} more pairs than fit at once: {team.pairs}")
                continue
            xw = torch.matmul(x.view(-1, H), W.t())
            kf = lambda: team.forward(xw, R, None, [], None)
            kb = lambda: team.backward(R, [], dy, [], None)

            def layer():
                xw = torch.matmul(x.view(-1, H), W.t())
                team.forward(xw, R, None, [], None)

            def both():
                layer()
                team.backward(R, [], dy, [], None)
                d = team.dxw.view(B * T, G * H)
                if heads == 1:
                    torch.matmul(d.t(), team.previous.view(-1, H))
                else:
                    left = d.view(B * T, G, heads, units).permute(2, 1, 3, 0).reshape(heads, G * units, B * T)
                    torch.matmul(left, team.previous.view(B * T, heads, units).transpose(0, 1))
                torch.matmul(d.t(), x.view(-1, H))
                torch.matmul(d, W)
            times = [median(f) for f in (kf, kb, layer, both)]
            row = f"{CELLS[cell]:13} B{B} T{T} {heads}x{units}".ljust(38) + " ".join(f"{t:9.3f}" for t in times)
            if peers and heads == 1 and cell in (0, 2, 4):
                kind = {0: torch.nn.RNN, 2: torch.nn.GRU, 4: torch.nn.LSTM}[cell]
                net = kind(H, H, batch_first=True).to("cuda", torch.bfloat16)
                leaf, g = x.clone().requires_grad_(), dy.bfloat16()

                def train():
                    for p in [leaf, *net.parameters()]:
                        p.grad = None
                    net(leaf)[0].backward(g)
                row += " " + " ".join(f"{t:9.3f}" for t in (median(lambda: net(leaf), 7), median(train, 7)))
            print(row, flush=True)
        except RuntimeError as e:
            print(f"{CELLS[cell]:13} B{B} T{T} {heads}x{units} {e}")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--check", action="store_true")
    p.add_argument("--time", action="store_true")
    p.add_argument("--spin", type=int, help="loops after which a wait gives up, for development")
    p.add_argument("--define", action="append", default=[])
    o = p.parse_args()
    torch.cuda.init()
    torch.empty(1, device="cuda")
    kernels = Kernels(([f"-DGYRE_SPIN_LIMIT={o.spin}"] if o.spin else []) + o.define)
    print(torch.cuda.get_device_name(0), torch.__version__)
    if o.check:
        check(kernels)
    if o.time:
        measure(kernels)
