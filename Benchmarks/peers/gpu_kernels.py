"""Check and time the project's sequence-mixer kernels on one NVIDIA GPU, without the library.

Compiles Sources/CGyreCUDASources/cuda/*.cu with NVRTC (or takes cubins made before), compares the
forward pass and every gradient with the recurrence in float64 (autograd) on fresh random inputs, with
outputs poisoned by NaN and two runs compared bit for bit, then prints the median times of CUDA events
next to the time that the bytes alone need.

    python3 gpu_kernels.py [--cubins FOLDER] [--check] [--time] [--only NAME,NAME] [--forward] [--shapes 0,1,2]
"""
import argparse

import torch

from gpu_modules import (
    Cuda, DeltaGradientArgs, DeltaPrepareArgs, DeltaTileArgs, Emulator, LinearTileArgs, MixerArgs, NormalizerArgs,
    ScanArgs, SegmentArgs)
from gpu_modules import compile  # noqa: F401

LINEAR, BETA, GENERAL = 0, 1, 2
PREFIX = ["linear_attention", "delta_rule_beta", "delta_rule_general"]


# Launch descriptions: the same numbers as the layouts in the headers.

def record_bytes(rule, K):
    return (4096 + (2, 3, 4)[rule] * 64 * K) * 2 + K * 4 + (512 if rule == BETA else 0)


def prepare_bytes(rule, K, scalar=False):
    if scalar and rule == BETA:
        return (2 * 4096 + 2 * 64 * K + 2048 + 640 + 256) * 2
    tiles = 4096 + (2, 4, 6)[rule] * 64 * K + (4096, 8192, 16384)[rule]
    return (tiles + 2048 + 640 + 256) * 2


def walk_bytes(rule, K, VT, back, norm=False):
    without = 512 if rule == BETA else (4096 + 64 * K) * 2 if back else 0
    up = lambda n: (n + 1023) // 1024 * 1024
    stage = up(record_bytes(rule, K) - without) + up(64 * VT * 2)
    if norm:
        stage += up((0 if back else 512) + K * 4)
    fit = (225 * 1024 - 1024) // stage
    return max(2, min(4, fit)) * stage + 1024


def segment_bytes(K, back, states):
    """A walk of linear attention in segments: two blocks of threads a multiprocessor where their stages fit."""
    up = lambda n: (n + 1023) // 1024 * 1024
    copied = 128 * K + K * 4 + (0 if back or states else 8192 + 128 * K)
    stage = up(copied) + 8192
    half, all = (225 * 512 - 1024) // stage, (225 * 1024 - 1024) // stage
    return max(2, min(4, half if half >= 2 else all)) * stage + 1024


def tiles_bytes(K, outputs):
    panels, stages, slots = K // 64, 5 if K == 64 else 4, (3 if K == 64 else 2) if outputs else 0
    stage = ((2 if outputs else 1) * panels + 1) * 8192 + 2048
    return 1024 + stages * (stage + 16) + 1024 + slots * (panels * 9216 + 16) + (2 * 8192 if outputs else 0)


def tiles_threads(outputs):
    return 512 if outputs else 192


def delta_tiles_bytes(rule, K, groups, outputs):
    stage = (2 + (rule == GENERAL) + outputs) * 128 * K + (groups + outputs) * 8192 + 1024
    return 1024 + min(4, (226 * 1024 - 512) // stage) * (stage + 80)


def delta_prepare_bytes(K):
    return 1024 + 128 * K + 16384 + 4096 + 1280 + 4 * 256 + 8


def delta_back_bytes(K):
    tiles, near = 7 if K == 64 else 10, 16384 + (K * 4 + 512 + 1023) // 1024 * 1024
    return 1024 + tiles * 128 * K + 3 * near + (tiles + 3) * 16


def delta_gradient_bytes(K, V):
    panels = 2 * K // 64 + 3 * V // 64 + (1 if K + V == 128 else 2)
    return 1024 + panels * 8192 + 2584 + K // 64 * 4 * 520


def gradient_bytes(rule, K, V, scalar=False):
    rest = 640 + 2048 + 1024 + 256 + 128 + 128 + 256
    if scalar:
        return (3 * 64 * V + 2 * 4096 + 2 * 64 * K + rest) * 2
    stage = 2 * 64 * V + 2 * V * K
    first = (4096 + 64 * K, 0, 4 * 4096 + 3 * 64 * K)[rule]
    second = (4096, 64 * V + 2 * 4096, 2 * 64 * V + 6 * 4096)[rule]
    return (stage + max(first, second) + 2 * 4096 + 8 * 1280 + rest) * 2


LINEAR_GRADIENT_BYTES = (8 * 4096 + 640 + 1280 + 128 + 256) * 2


def mild_prepare_bytes(rule, K):
    tiles = 64 * K * (2, 3, 4)[rule] + 4096 * (1, 3, 5)[rule]
    return (tiles + 8 * K + 128 + 2 * K) * 2


def mild_gradient_bytes(rule):
    return ((8, 9, 13)[rule] * 4096 + 2 * 512 + 1024 + 256 + 128 + 512) * 2


def round_size(K):
    return next(n for n in (64, 128, 256) if K <= n)


def segments_of(chunks, blocks, processors=132):
    """Blocks of outputs and segments of each, as LinearAttentionTiles.swift makes them."""
    def cost(choice):
        n, each = choice
        length = -(-chunks // (n * each))
        outputs = -(-chunks // (length * each))
        waves, added = -(-blocks * outputs // processors), blocks * (outputs - 1) * each
        states = 0.9 * -(-added // (2 * processors)) if added > processors else 0.65 if added else 0
        return waves * (length * each + 3) + states * (length + 3) + 0.4 * (outputs - 1) * each
    most = min(chunks, 1 + 2 * processors // blocks)
    return min(((n, each) for n in range(1, most + 1) for each in (1, 2)), key=cost)


def delta_segments_of(chunks, rows, panels, K, processors=132):
    """As many as DeltaRuleTiles.swift makes."""
    side, transitions = processors // rows, -(-K // 64 // panels)
    wanted = min(side, (side + 1 + 2 * transitions) // (1 + transitions))
    return 1 if side < 3 or chunks < 32 else min(wanted, chunks // 8)


def back_segments_of(chunks, blocks, processors=132):
    """As many as DeltaRuleTilesBack.swift makes."""
    return max(1, min(processors // blocks, chunks // 8))


class Mixer:
    """One problem: inputs, outputs, workspaces, launches."""

    def __init__(self, dev, rule, B, T, H, K, V, dtype, gate_kind=0, gate_dtype=torch.float32, key_heads=None,
                 state=False, reset=False, beta_max=1.0, gate_low=-0.2, seed=0, scale=None, backward=True, team=None,
                 normalize=False, has_mild=True, divisor=0, input_low=0.0, segments=None,
                 cut=None):
        # divisor: 0 none, 1 a + epsilon, 2 max(|a|, floor) + epsilon, 3 max(|a|, e^-m) + epsilon with input gates
        # segments: of a pass by tiles that keeps nothing for gradients; None: what `segments_of` takes for fastest.
        # cut: segments of walks over records, 0: walks in one piece; None: as many as fill the card.
        self.normalize, self.has_mild, self.divisor = normalize, has_mild, divisor
        self.dev, self.rule = dev, rule
        self.B, self.T, self.H, self.K, self.V, self.dtype = B, T, H, K, V, dtype
        self.Hk = key_heads or H
        self.gate_kind, self.backward = gate_kind, backward
        self.scale = scale if scale is not None else (1.0 if rule == GENERAL else K ** -0.5)
        d = dev.device
        gen = torch.Generator(device=d).manual_seed(seed)
        rand = lambda *s: torch.randn(*s, device=d, generator=gen)
        uni = lambda *s: torch.rand(*s, device=d, generator=gen)
        i = {}
        i["q"] = rand(B, T, self.Hk, K)
        i["k"] = rand(B, T, self.Hk, K)
        if rule == BETA and not normalize:
            i["k"] = torch.nn.functional.normalize(i["k"], dim=-1)
        i["v"] = rand(B, T, H, V)
        if rule == GENERAL:
            kk = torch.nn.functional.normalize(rand(B, T, H, K), dim=-1)
            i["a"], i["b"] = -kk, kk * torch.sigmoid(rand(B, T, H, K))
            i["k"] = i["k"] * 0.3
        shape = {0: None, 1: (H,), 2: (B, T, H), 3: (B, T, H, K)}[gate_kind]
        if shape:
            i["gate"] = gate_low * uni(*shape)
            if gate_low <= -20:  # closed gates among open ones
                i["gate"] = torch.where(uni(*shape) < 0.7, 0.01 * i["gate"], i["gate"])
                i["gate"] = torch.where(uni(*shape) < 0.02, torch.full_like(i["gate"], -float("inf")), i["gate"])
        if rule == BETA:
            i["beta"] = beta_max * uni(B, T, H)
        if state:
            i["initial"] = rand(B, H, K, V)
        if divisor:  # a sum of both signs may come near zero, where a divisor magnifies rounding
            i["q"], i["k"] = i["q"].abs(), i["k"].abs()
            if divisor > 1:
                i["q"][:, :, ::2] *= -1
            if state:
                i["vector"] = rand(B, H, K).abs()
        if divisor == 3:
            i["input"] = 3 * rand(B, T, H) + input_low
        self.maximum = rand(B, H) if divisor == 3 and state else None
        self.epsilon, self.floor = 1e-6, 1.0
        exact = ("initial", "vector")
        kind = lambda n: gate_dtype if n in ("gate", "input") else torch.float32 if n in exact else dtype
        self.inputs = {n: x.to(kind(n)).contiguous() for n, x in i.items()}
        self.reset = None
        if reset:
            self.reset = torch.zeros(B, T, device=d, dtype=torch.int32)
            self.reset[0, min(5, T - 1)] = 1
            self.reset[0, min(21, T - 1)] = 7
            self.reset[-1, 0] = 1
            if T > 150:
                self.reset[-1, 128] = 1
                self.reset[0, 100] = 1
        self.dy = rand(B, T, H, V).to(dtype)
        self.d_final = rand(B, H, K, V) if state else None
        self.d_vector = rand(B, H, K) if state and divisor else None
        self.N = (T + 63) // 64
        self.by_tiles = True
        # Gates without channels take values of any size, or have kernels for both sizes.
        self.KP = round_size(K if rule == LINEAR and gate_kind < 3 or self.is_raw() else max(K, V))
        # Four warps for 16 values where a warp each would leave multiprocessors idle.
        self.team = team if team is not None else B * H * ((V + 63) // 64) < 96 or self.KP > 128
        blocks = B * H * ((V + 63) // 64)
        self.segments, self.each = (segments, 1) if segments else segments_of(self.N, blocks) if rule == LINEAR else (
            delta_segments_of(self.N, B * H, (V + 63) // 64, self.KP), 1)
        if cut is None:
            cuts = self.team and rule == LINEAR and self.KP <= 128 and dtype == torch.bfloat16 and not divisor
            cut = min(2 * 132 // blocks, (self.N + 3) // 4) if cuts else 0
        self.cut = cut
        self.allocate()

    def allocate(self):
        d, (B, T, H, K, V, N) = self.dev.device, (self.B, self.T, self.H, self.K, self.V, self.N)
        nan = lambda *s, dtype=torch.float32: torch.full(s, float("nan"), device=d, dtype=dtype)
        self.y, self.final = nan(B, T, H, V, dtype=self.dtype), nan(B, H, K, V)
        self.records = torch.full((B * H * N * record_bytes(self.rule, self.KP),), 255, device=d, dtype=torch.uint8)
        self.states = self.state_gradients = self.extras = self.written = None
        self.norms = nan(B * H * N * 128)
        # The kernels for mild decays leave steep chunks to the others.
        self.mild = None
        if self.gate_kind == 3 and self.has_mild:
            self.mild = torch.full((B * H * N,), -1, device=d, dtype=torch.int32)
        self.grads = {}
        self.extra = {}
        self.tile_args = self.between = None
        self.maps, self.cuts = {}, {}
        if self.divisor:
            e = self.extra
            e["row_sums"], e["key_sums"] = nan(B * H * N * 128), nan(B * H * N * self.KP)
            e["final_vector"] = nan(B, H, K)
            if self.divisor == 3:
                e["stabilizers"], e["final_max"] = nan(B * H * (N + 1) * 2), nan(B, H)
            if self.backward:
                e["vectors"], e["amounts"] = nan(B * H * N * self.KP), nan(B, T, H)
                e["dn"], e["d_amounts"] = nan(B, T, H, V, dtype=self.dtype), nan(B, T, H)
                e["query_sums"], e["vector_gradients"] = nan(B * H * N * self.KP), nan(B * H * N * self.KP)
        if self.backward:
            self.states = nan(B * H * N * ((V + 15) // 16) * 16 * self.KP, dtype=torch.bfloat16)
            self.state_gradients = torch.full_like(self.states, float("nan"))
            if self.rule:
                size = B * H * N * (8192, 24576)[self.rule - 1]
                self.extras = torch.full((size,), 255, device=d, dtype=torch.uint8)
            if self.rule == BETA:
                self.written = nan(B, T, H, V, dtype=self.dtype)
            g = {"dq": nan(B, T, H, K, dtype=self.dtype), "dk": nan(B, T, H, K, dtype=self.dtype),
                 "dv": nan(B, T, H, V, dtype=self.dtype)}
            if self.rule == GENERAL:
                g["da"], g["db"] = (nan(B, T, H, K, dtype=self.dtype) for _ in range(2))
            if self.gate_kind:
                g["d_gate"] = nan(B, T, H, K, dtype=self.inputs["gate"].dtype) if self.gate_kind == 3 else nan(B, T, H)
            if self.rule == BETA:
                g["d_beta"] = nan(B, T, H)
            if "initial" in self.inputs:
                g["d_initial"] = nan(B, H, K, V)
            if "vector" in self.inputs:
                g["d_vector"] = nan(B, H, K)
            if self.divisor == 3:
                g["d_input"] = nan(B, T, H)
            self.grads = g

    def args(self):
        p = lambda x: None if x is None else x.data_ptr()
        i, own = self.inputs, ("input", "vector")
        a = MixerArgs(**{n: p(x) for n, x in i.items() if n not in own}, reset=p(self.reset), norms=p(self.norms),
                      mild=p(self.mild), y=p(self.y), final=p(self.final), records=p(self.records),
                      extras=p(self.extras), states=p(self.states), written=p(self.written),
                      state_gradients=p(self.state_gradients),
                      dy=p(self.dy), d_final=p(self.d_final),
                      **{n: p(x) for n, x in self.grads.items() if n not in ("d_input", "d_vector")})
        a.n = NormalizerArgs(
            input_gate=p(i.get("input")), initial_max=p(self.maximum), initial_vector=p(i.get("vector")),
            d_final_vector=p(self.d_vector), d_initial_vector=p(self.grads.get("d_vector")),
            d_input=p(self.grads.get("d_input")), **{n: p(x) for n, x in self.extra.items()})
        a.n.input_is_float = int("input" in i and i["input"].dtype == torch.float32)
        a.n.divisor, a.n.floor, a.n.epsilon = self.divisor, self.floor, self.epsilon
        a.batch, a.tokens, a.heads, a.key_heads = self.B, self.T, self.H, self.Hk
        a.keys, a.values, a.chunks, a.gate_kind, a.scale = self.K, self.V, self.N, self.gate_kind, self.scale
        a.gate_is_float = int("gate" in i and i["gate"].dtype == torch.float32)
        a.normalize = int(self.normalize)
        a.beta_is_float = int("beta" in i and i["beta"].dtype == torch.float32)
        return a

    def name(self, kernel):
        e = "bf16" if self.dtype == torch.bfloat16 else "float"
        return f"{PREFIX[self.rule]}_{kernel}_{e}_k{self.KP}"

    def scalar(self):
        return "_scalar" if self.gate_kind < 3 and self.rule != GENERAL else ""

    def rest(self, name, threads, size, is_shared):
        """The kernel of any gate: over the chunks that the mild kernel has left, or all."""
        grid = (self.N, self.B * self.H, 1)
        args = self.args()
        if name == "gradient" and self.divisor:
            args.dy = args.n.dn
        if name == "prepare":
            args.n.d_amounts = None
        if not self.scalar():
            grid = (min(self.N * self.B * self.H, 264) if is_shared else self.N * self.B * self.H, 1, 1)
            if not is_shared:
                args.mild = None
        self.dev.launch(self.name(name + self.scalar()), grid, threads, size, args)

    def prepare(self):
        if self.is_raw():
            return self.prepare_tiles()
        if self.mild is not None:
            self.dev.launch(self.name("prepare_mild"), (self.N, self.B * self.H, 1), 256,
                            mild_prepare_bytes(self.rule, self.KP), self.args())
        self.rest("prepare", 128, prepare_bytes(self.rule, self.KP, bool(self.scalar())), self.mild is not None)

    def walk_cut(self, back):
        """In segments: their states, then all."""
        length = (self.N + self.cut - 1) // self.cut
        segments = (self.N + length - 1) // length
        a = SegmentArgs(m=self.args(), segments=segments, steps=length)
        rows, blocks = self.B * self.H, (self.V + 63) // 64
        if segments > 1:
            if self.between is None or self.between[0] != segments:
                nan = lambda n: torch.full((n,), float("nan"), device=self.dev.device)
                self.between = (segments, nan(rows * ((self.V + 15) // 16) * (segments - 1) * 16 * self.KP),
                                nan(rows * (segments - 1) * self.KP))
            a.states, a.decays = (x.data_ptr() for x in self.between[1:])
        name = "walk_back" if back else "walk"
        for part, count in (("states", segments - 1), ("segments", segments)):
            if count:
                self.dev.launch(self.name(f"{name}_{part}"), (blocks, rows, count), 128,
                                segment_bytes(self.KP, back, part == "states"), a)

    def walk(self, back=False):
        if self.has_delta_tiles() and (self.rule == BETA or not back and self.states is None):
            return self.walk_tiles_back() if back else self.walk_tiles()
        if self.cut:
            return self.walk_cut(back)
        end = ("_team" if self.team else "") + ("_norm" if self.divisor else "")
        name = self.name(("walk_back" if back else "walk") + end)
        args = self.args()
        if back and self.divisor:
            args.dy = args.n.dn
        VT = 32 if self.team else 64
        size = walk_bytes(self.rule, self.KP, VT, back, self.divisor > 0)
        size += 2 * (16 * self.KP + 1024) * 2 if self.team else 0
        self.dev.launch(name, ((self.V + VT - 1) // VT, self.B * self.H, 1), 256 if self.team else 128, size, args)

    def has_delta_tiles(self):
        return (self.by_tiles and self.rule != LINEAR and self.dtype == torch.bfloat16 and self.dev.device == "cuda" and
                torch.cuda.get_device_capability()[0] == 9)

    def is_raw(self):
        """Whether records are without W and Q̄, which the walks by tiles make of k and q."""
        return self.has_delta_tiles() and self.rule == BETA and self.gate_kind < 3

    def map(self, name):
        """Boxes of an input, a gradient or another tensor, or of the records."""
        if name not in self.maps:
            x = self.inputs.get(name, self.grads.get(name))
            self.maps[name] = self.dev.map(getattr(self, name) if x is None else x)
        return self.maps[name]

    def record_tiles(self):
        if "tiles" not in self.maps:
            self.maps["tiles"] = self.dev.record_map(
                self.records, self.KP, self.B * self.H * self.N, record_bytes(self.rule, self.KP))
        return self.maps["tiles"]

    def prepare_tiles(self):
        a = DeltaPrepareArgs(q=self.map("q"), k=self.map("k"), tiles=self.record_tiles(), m=self.args())
        self.dev.launch(f"delta_rule_prepare_tiles_k{self.KP}", (self.H, self.N, self.B), 128,
                        delta_prepare_bytes(self.KP), a)

    def tile_arguments(self, rows, segments):
        """What a walk by tiles takes, with workspace for at most so many segments."""
        a = DeltaTileArgs(tiles=self.record_tiles(), rows=self.map(rows), m=self.args())
        if self.is_raw():
            a.q, a.k = self.map("q"), self.map("k")
        a.segment_chunks = -(-self.N // segments)
        a.segments = -(-self.N // a.segment_chunks)
        if a.segments > 1:
            if rows not in self.cuts:
                between, KP = self.B * self.H * (a.segments - 1), self.KP
                self.cuts[rows] = (
                    torch.empty(between * -(-self.V // 64) * 64 * KP, device=self.dev.device),
                    torch.empty(between * 2 * KP * KP, dtype=torch.bfloat16, device=self.dev.device))
            a.segment_states, a.segment_transitions = (x.data_ptr() for x in self.cuts[rows])
        return a

    def walk_tiles(self):
        """The forward walk by tiles, of segments side by side where there are to be some."""
        panels, rows, KP, rule = (self.V + 63) // 64, self.B * self.H, self.KP, self.rule
        a = self.tile_arguments("v", self.segments)
        name = "delta_rule_tiles" + ("_general" if rule == GENERAL else "_raw" if self.is_raw() else "")

        def run(part, outputs, segments, blocks):
            groups = 1 if blocks(1) * rows * segments <= 132 else panels
            self.dev.launch(f"{name}{part}_v{64 * groups}_k{KP}", (blocks(groups), rows, segments),
                            384 if groups == 2 else 160, delta_tiles_bytes(rule, KP, groups, outputs), a)
        if a.segments > 1:
            run("_states", 0, a.segments - 1, lambda groups: -(-panels // groups) - (-KP // 64 // groups))
            self.dev.launch(f"delta_rule_tiles_fold_k{KP}", (panels, rows, 1), 128, KP * KP * 8 + 1056, a)
        run("", 1, a.segments, lambda groups: -(-panels // groups))

    def walk_tiles_back(self):
        """The walk back by tiles; of segments, all but one in each of two launches."""
        panels, rows, KP = (self.V + 63) // 64, self.B * self.H, self.KP
        a = self.tile_arguments("dy", back_segments_of(self.N, rows * panels))
        name, rest = "delta_rule_tiles_back" + ("_raw" if self.is_raw() else ""), a.segments - 1

        def run(part, width):
            self.dev.launch(f"{name}{part}_k{KP}", (width, rows, max(rest, 1)), 160, delta_back_bytes(KP), a)
        if rest:
            run("_first", panels + KP // 64)
        run("", panels)

    def gradient_tiles(self):
        KP, VP = self.KP, round_size(self.V)
        a = DeltaGradientArgs(**{n: self.map(n) for n in "q k dy dv written dq dk".split()}, m=self.args())
        self.dev.launch(f"delta_rule_gradient_tiles_k{KP}_v{VP}", (self.N, self.B * self.H, 1), 2 * KP,
                        delta_gradient_bytes(KP, VP), a)

    def stabilize(self):
        if self.divisor == 3:
            self.dev.launch(self.name("stabilize"), (self.B * self.H, 1, 1), 1024, 0, self.args())

    def normalize_back(self):
        if self.divisor:
            self.dev.launch(self.name("normalize_back"), (self.N, self.B * self.H, 1), 512, (64 + 1024) * 4,
                            self.args())

    def gradient(self):
        if self.is_raw():
            return self.gradient_tiles()
        does = self.mild is not None and self.KP == 64
        if does:
            self.dev.launch(self.name("gradient_mild"), (self.N, self.B * self.H, 1), 256,
                            mild_gradient_bytes(self.rule), self.args())
        is_linear = self.rule == LINEAR and self.scalar()
        size = LINEAR_GRADIENT_BYTES if is_linear else gradient_bytes(
            self.rule, self.KP, self.KP, bool(self.scalar()))
        self.rest("gradient", 256, size, does)

    def has_tiles(self):
        return (self.rule == LINEAR and self.gate_kind < 3 and self.KP <= 128 and self.dtype == torch.bfloat16 and
                not self.normalize and self.dev.device == "cuda" and torch.cuda.get_device_capability()[0] == 9)

    def tiles(self):
        """Forward in one pass, or with the segments' states before it."""
        if not self.tile_args:
            a = self.tile_args = LinearTileArgs(m=self.args())
            a.q, a.k, a.v = (self.dev.map(self.inputs[n]) for n in "qkv")
            chunks = (self.N + self.segments * self.each - 1) // (self.segments * self.each)
            a.segment_chunks, a.segments = chunks, (self.N + chunks - 1) // chunks
            self.last = (a.segments - 1) // self.each
            rows, blocks = self.B * self.H, (self.V + 63) // 64
            if a.segments > 1:
                nan = lambda n: torch.full((n,), float("nan"), device=self.dev.device)
                self.between = (nan(rows * blocks * (a.segments - 1) * (self.KP // 64) * 4352),
                                nan(rows * a.segments * 2))
                a.segment_states, a.segment_gates = (x.data_ptr() for x in self.between)
        a = self.tile_args
        grid, end = ((self.V + 63) // 64, self.B * self.H), ("_norm" if self.divisor else "") + f"_k{self.KP}"
        if self.last:
            self.dev.launch("linear_attention_tiles_states" + end, (*grid, self.last * self.each), tiles_threads(False),
                            tiles_bytes(self.KP, False), a)
        self.dev.launch("linear_attention_tiles" + end, (*grid, self.last + 1), tiles_threads(True),
                        tiles_bytes(self.KP, True), a)

    def forward(self):
        if self.states is None and self.has_tiles():
            return self.tiles()
        self.stabilize()
        self.prepare()
        self.walk()

    def forget(self):
        """From here on the forward pass keeps nothing for gradients."""
        self.states = self.extras = self.written = None
        for n in ("vectors", "amounts"):
            self.extra.pop(n, None)

    def backprop(self):
        self.normalize_back()
        self.walk(back=True)
        self.gradient()

    def reference(self, gradients):
        unit = lambda x: x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
        i = {n: (unit(x.double()) if self.normalize and n in "qk" else x.double()).requires_grad_(gradients)
             for n, x in self.inputs.items()}
        group = self.H // self.Hk
        q, k = (i[n].repeat_interleave(group, 2) for n in ("q", "k"))
        v = i["v"]
        B, T, H, K, V = self.B, self.T, self.H, self.K, self.V
        S = i.get("initial", torch.zeros(B, H, K, V, device=v.device, dtype=torch.float64))
        z = i.get("vector", torch.zeros(B, H, K, device=v.device, dtype=torch.float64))
        m = torch.zeros(B, H, device=v.device).double() if self.maximum is None else self.maximum.double()
        ys = []
        for t in range(T):
            if self.reset is not None:
                open = (self.reset[:, t] == 0).double()
                S, z, m = S * open[:, None, None, None], z * open[:, None, None], m * open[:, None]
            before = S
            kt, vt = k[:, t], v[:, t]
            if self.gate_kind:
                g = i["gate"]
                g = g[None, :, None] if self.gate_kind == 1 else g[:, t][..., None] if self.gate_kind == 2 else g[:, t]
                if self.divisor == 3:
                    top = torch.maximum(g[..., 0] + m, i["input"][:, t]).detach()
                    g = g + (m - top)[..., None]
                    kt, m = kt * torch.exp(i["input"][:, t] - top)[..., None], top
                S = S * torch.exp(g)[..., None]
                z = z * torch.exp(g)
            if self.rule == BETA:
                error = vt - torch.einsum("bhkv,bhk->bhv", S, kt)
                S = S + torch.einsum("bhk,bhv->bhkv", kt, i["beta"][:, t][..., None] * error)
            elif self.rule == GENERAL:
                read = torch.einsum("bhkv,bhk->bhv", before, i["a"][:, t])
                S = S + torch.einsum("bhk,bhv->bhkv", i["b"][:, t], read) + torch.einsum("bhk,bhv->bhkv", kt, vt)
            else:
                S = S + torch.einsum("bhk,bhv->bhkv", kt, vt)
            o = self.scale * torch.einsum("bhkv,bhk->bhv", S, q[:, t])
            if self.divisor:
                z = z + kt
                a = self.scale * torch.einsum("bhk,bhk->bh", z, q[:, t])
                bound = torch.exp(-m) if self.divisor == 3 else torch.full_like(m, self.floor)
                d = a if self.divisor == 1 else torch.maximum(a.abs(), bound)
                o = o / (d + self.epsilon)[..., None]
            ys.append(o)
        y = torch.stack(ys, 1)
        out = {"y": y.detach(), "final": S.detach()}
        if self.divisor:
            out["final_vector"] = z.detach()
        if self.divisor == 3:
            out["final_max"] = m.detach()
        if gradients:
            loss = (y * self.dy.double()).sum()
            if self.d_final is not None:
                loss = loss + (S * self.d_final.double()).sum()
            if self.d_vector is not None:
                loss = loss + (z * self.d_vector.double()).sum()
            loss.backward()
            for n, x in i.items():
                out["d_" + n if n in ("gate", "beta", "initial", "input", "vector") else "d" + n] = x.grad
        return out


def error(out, ref):
    out = out.double()
    if not torch.isfinite(out).all():
        return float("nan")
    return ((out - ref).norm() / ref.norm().clamp_min(1e-30)).item()


def check(m, label, backward):
    m.forward()
    if backward:
        m.backprop()
    ref = m.reference(backward)
    outs = {"y": m.y, "final": m.final}
    outs.update({n: m.extra[n] for n in ("final_vector", "final_max") if n in m.extra})
    if backward:
        for n, x in m.grads.items():
            if n in ("dq", "dk"):
                x = x.double().unflatten(2, (m.Hk, m.H // m.Hk)).sum(3)
            if n == "d_gate" and m.gate_kind == 1:
                x = x.double().sum((0, 1))
            outs[n] = x
    e = {n: error(x, ref[n]) for n, x in outs.items()}
    keep = lambda: [("y", m.y), ("final", m.final)] + (list(m.grads.items()) if backward else [])
    first = [x.clone() for _, x in keep()]
    same = True
    if m.dev.device == "cuda":
        m.allocate()
        m.forward()
        if backward:
            m.backprop()
        same = all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, (_, b) in zip(first, keep()))
    worst = max(e.values()) if all(x == x for x in e.values()) else float("nan")
    print(f"{'ok  ' if worst < 1.2e-2 and same else 'BAD '} {label}: " +
          " ".join(f"{n} {x:.1e}" for n, x in e.items()) + ("" if same else " NOT REPEATABLE"), flush=True)


class Scan:
    """h = a h + u over [B, T, D]."""

    def __init__(self, dev, B, T, D, dtype, gate_dtype=torch.float32, log=True, state=False, reset=False):
        self.dev, self.B, self.T, self.D = dev, B, T, D
        d = dev.device
        self.decay = (torch.nn.functional.logsigmoid(torch.randn(B, T, D, device=d) + 3) if log
                      else torch.rand(B, T, D, device=d) * 2 - 1).to(gate_dtype)
        self.input = torch.randn(B, T, D, device=d).to(dtype)
        self.initial = torch.randn(B, D, device=d) if state else None
        self.d_final = torch.randn(B, D, device=d) if state else None
        self.dh = torch.randn(B, T, D, device=d).to(dtype)
        self.reset = None
        if reset:
            self.reset = (torch.rand(B, T, device=d) < 0.02).to(torch.int32)
            self.reset[-1, 0] = 1
        self.log, self.dtype = log, dtype
        self.allocate()

    def allocate(self):
        nan = lambda x: torch.full_like(x, float("nan"))
        self.h, self.final = nan(self.input), torch.full((self.B, self.D), float("nan"), device=self.dev.device)
        self.du, self.da, self.d_initial = nan(self.input), nan(self.decay), torch.full_like(self.final, float("nan"))

    def run(self, back):
        p = lambda x: None if x is None else x.data_ptr()
        a = ScanArgs(decay=p(self.decay), input=p(self.input), initial=p(self.initial), reset=p(self.reset),
                     h=p(self.h), final=p(self.final), dh=p(self.dh), d_final=p(self.d_final), da=p(self.da),
                     du=p(self.du), d_initial=p(self.d_initial), batch=self.B, tokens=self.T, channels=self.D,
                     decay_is_log=int(self.log), decay_is_float=int(self.decay.dtype == torch.float32))
        width = 64 if self.B * self.D >= 64 * 96 else 16
        e = "bf16" if self.dtype == torch.bfloat16 else "float"
        g = "float" if self.decay.dtype == torch.float32 else "bf16"
        self.dev.launch(f"diagonal_scan_{'backward' if back else 'forward'}_{e}_{g}_c{width}",
                        ((self.D + width - 1) // width, self.B, 1), 512, 0, a)

    def forward(self):
        self.run(False)

    def backprop(self):
        self.run(True)

    def check(self, label):
        self.forward()
        self.backprop()
        a, u = self.decay.double().requires_grad_(), self.input.double().requires_grad_()
        h0 = torch.zeros(self.B, self.D, device=a.device) if self.initial is None else self.initial
        h0 = h0.double().requires_grad_()
        h, out = h0, []
        rate = torch.exp(a) if self.log else a
        for t in range(self.T):
            r = rate[:, t]
            if self.reset is not None:
                r = r * (self.reset[:, t] == 0).double()[:, None]
            h = r * h + u[:, t]
            out.append(h)
        y = torch.stack(out, 1)
        loss = (y * self.dh.double()).sum()
        if self.d_final is not None:
            loss = loss + (h * self.d_final.double()).sum()
        loss.backward()
        e = dict(h=error(self.h, y), final=error(self.final, h), du=error(self.du, u.grad), da=error(self.da, a.grad),
                 d_initial=error(self.d_initial, h0.grad))
        first = [x.clone() for x in (self.h, self.du, self.da)]
        self.allocate()
        self.forward()
        self.backprop()
        same = all(torch.equal(x, y) for x, y in zip(first, (self.h, self.du, self.da)))
        worst = max(e.values()) if all(x == x for x in e.values()) else float("nan")
        limit = 5e-3 if self.dtype == torch.bfloat16 else 2e-6
        print("ok " if worst < limit and same else "BAD", f"{label}:", *(f"{n} {x:.1e}" for n, x in e.items()),
              "" if same else "NOT REPEATABLE", flush=True)


def cases(small):
    bf = torch.bfloat16
    T = 200 if small else 333
    full = dict(state=True, reset=True)
    yield "linear none", (LINEAR, 2, T, 2, 64, 64, bf), dict(**full)
    yield "linear vector", (LINEAR, 2, T, 2, 64, 64, bf), dict(gate_kind=3, gate_low=-2, **full)
    yield "delta none", (BETA, 2, T, 2, 64, 64, bf), dict(beta_max=1.0, **full)
    yield "delta beta 2", (BETA, 2, T, 2, 64, 64, bf), dict(beta_max=2.0)
    yield "kda", (BETA, 2, T, 2, 64, 64, bf), dict(gate_kind=3, gate_low=-2, **full)
    yield "rwkv7", (GENERAL, 2, T, 2, 64, 64, bf), dict(gate_kind=3, gate_low=-0.6, gate_dtype=bf, **full)
    open = dict(state=True)
    yield "mild gla", (LINEAR, 2, T, 2, 64, 64, bf), dict(gate_kind=3, gate_low=-0.5, **open)
    yield "mild kda", (BETA, 2, T, 2, 64, 64, bf), dict(gate_kind=3, gate_low=-0.5, **open)
    yield "mild rwkv7", (GENERAL, 2, T, 2, 64, 64, bf), dict(gate_kind=3, gate_low=-0.6, gate_dtype=bf, **open)
    yield "mild strong", (GENERAL, 1, T, 2, 64, 64, bf), dict(gate_kind=3, gate_low=-1.4, **open)
    yield "mild groups", (BETA, 1, T, 4, 64, 64, bf), dict(gate_kind=3, gate_low=-0.5, key_heads=2, normalize=True,
                                                           **open)
    yield "mild gla 128", (LINEAR, 1, T, 2, 128, 128, bf), dict(gate_kind=3, gate_low=-0.5, **open)
    yield "mild kda 128", (BETA, 1, T, 2, 128, 128, bf), dict(gate_kind=3, gate_low=-0.5, normalize=True, **open)
    yield "mild rwkv7 128", (GENERAL, 1, T, 2, 128, 128, bf), dict(gate_kind=3, gate_low=-0.6, **open)
    yield "mild 40 24", (GENERAL, 1, T, 2, 40, 24, bf), dict(gate_kind=3, gate_low=-0.6, **open)
    for state in (True, False):
        keep = dict(state=state, reset=state, gate_kind=2, gate_low=-1)
        name = " full" if state else ""
        yield "mlstm" + name, (LINEAR, 2, T, 2, 64, 64, bf), dict(divisor=3, team=state, **keep)
        yield "floor" + name, (LINEAR, 2, T, 2, 64, 64, bf), dict(divisor=2, team=not state, **keep)
        yield "sum" + name, (LINEAR, 1, T, 2, 64, 64, bf), dict(divisor=1, state=state)
        yield "mlstm 128" + name, (LINEAR, 1, T, 2, 128, 128, bf), dict(divisor=3, input_low=-5, team=not state, **keep)
        yield "mlstm 128 plain" + name, (LINEAR, 1, T, 2, 128, 128, bf), dict(divisor=3, team=state, **keep)
    yield "mlstm wide", (LINEAR, 1, T, 2, 256, 512, bf), dict(divisor=3, gate_kind=2, gate_low=-1, state=True,
                                                              reset=True)
    yield "mlstm 128 256", (LINEAR, 1, T, 2, 128, 256, bf), dict(divisor=3, gate_kind=2, gate_low=-1)
    yield "linear 64 128", (LINEAR, 1, T, 2, 64, 128, bf), dict(gate_kind=2, gate_low=-1, team=False, **full)
    yield "linear 200 24", (LINEAR, 1, T, 2, 200, 24, bf), dict(gate_kind=2, gate_low=-1, **full)
    yield "mlstm groups", (LINEAR, 1, T, 4, 40, 24, bf), dict(divisor=3, gate_kind=2, gate_low=-1, key_heads=2,
                                                              state=True, gate_dtype=bf)
    # Walks in segments, forward and backward.
    for size in (64, 128):
        for cut in (1, 2, 4, 6):
            name, shape = f" {size} in {cut}", (LINEAR, 2, T, 2, size, size, bf)
            many = dict(gate_kind=3, gate_low=-2, cut=cut)
            yield "cut gla" + name, shape, dict(**full, **many)
            yield "cut mild" + name, shape, dict(state=True, **many | dict(gate_low=-0.05))
            yield "cut alone" + name, shape, dict(backward=False, **many | dict(gate_low=-0.5))
        yield f"cut closed {size}", shape, dict(**full, **many | dict(gate_low=-60, cut=3))
    yield "cut long", (LINEAR, 1, 1500, 2, 64, 64, bf), dict(gate_kind=3, gate_low=-0.05, cut=8)
    yield "cut long 128", (LINEAR, 1, 1437, 2, 128, 128, bf), dict(gate_kind=3, gate_low=-0.05, cut=8)
    yield "cut 40 24", (LINEAR, 1, T, 2, 40, 24, bf), dict(gate_kind=3, cut=3, **full)
    yield "cut 96 80", (LINEAR, 1, T, 2, 96, 80, bf), dict(gate_kind=3, cut=3, **full)
    # One pass that keeps nothing for gradients, on Hopper.
    tiles = dict(backward=False, gate_kind=2, gate_low=-1)
    for size in (64, 128):
        for segments in (1, 3):
            name, shape = f" {size} in {segments}", (LINEAR, 2, T, 2, size, size, bf)
            many = dict(segments=segments, **tiles)
            yield "tiles mlstm" + name, shape, dict(divisor=3, **full, **many)
            yield "tiles mlstm low" + name, shape, dict(divisor=3, input_low=-5, **many)
            yield "tiles floor" + name, shape, dict(divisor=2, **full, **many)
            yield "tiles scalar" + name, shape, dict(**full, **many)
            yield "tiles none" + name, shape, dict(state=True, backward=False, segments=segments)
            yield "tiles closed" + name, shape, dict(**full, **many | dict(gate_low=-60))
        yield f"tiles sum {size}", shape, dict(divisor=1, state=True, backward=False)
        yield f"tiles constant {size}", shape, dict(gate_kind=1, gate_low=-0.1, backward=False)
    yield "tiles groups", (LINEAR, 2, T, 4, 40, 24, bf), dict(divisor=3, key_heads=2, state=True, gate_dtype=bf,
                                                              **tiles)
    yield "tiles wide", (LINEAR, 1, T, 4, 96, 200, bf), dict(divisor=3, key_heads=2, segments=2, **full, **tiles)
    yield "tiles long", (LINEAR, 1, 1500, 2, 64, 64, bf), dict(divisor=3, segments=5, **tiles)
    yield "tiles short", (LINEAR, 3, 5, 2, 64, 64, bf), dict(divisor=3, **full, **tiles)
    for size in (64, 128):
        name, shape = f" {size} in tiles", (BETA, 2, T, 2, size, size, bf)
        yield "delta" + name, shape, dict(backward=False, **full)
        yield "delta open" + name, shape, dict(backward=False, beta_max=2.0)
        yield "gated delta" + name, shape, dict(backward=False, gate_kind=2, gate_low=-1, normalize=True, **full)
        yield "kda" + name, shape, dict(backward=False, gate_kind=3, gate_low=-2, normalize=True, **full)
        yield "kda mild" + name, shape, dict(backward=False, gate_kind=3, gate_low=-0.5, state=True)
        yield "kda closed" + name, shape, dict(backward=False, gate_kind=3, gate_low=-60, **full)
        yield "rwkv7" + name, (GENERAL, *shape[1:]), dict(backward=False, gate_kind=3, gate_low=-0.6, **full)
        for gate, kw in (("delta", {}), ("gated", dict(gate_kind=2, normalize=True)), ("kda", dict(gate_kind=3))):
            keep = dict(state=True, gate_low=-0.5, **kw)
            yield f"{gate} {size} segments", (BETA, 1, 2200, 2, size, size, bf), keep
        yield f"rwkv7 {size} segments", (GENERAL, 1, 2200, 2, size, size, bf), dict(
            backward=False, gate_kind=3, gate_low=-0.6, state=True)
    many = (BETA, 3, 2200, 6, 128, 128, bf)  # blocks of 128 value columns
    yield "gated wide segments", many, dict(gate_kind=2, gate_low=-0.5, normalize=True, state=True)
    yield "kda wide segments", many, dict(gate_kind=3, gate_low=-0.5, normalize=True, state=True)
    yield "delta constant", (BETA, 1, T, 2, 128, 128, bf), dict(gate_kind=1, gate_low=-0.1)
    yield "gated 64 128", (BETA, 2, T, 2, 64, 128, bf), dict(gate_kind=2, **full)
    yield "gated 128 64", (BETA, 2, T, 2, 128, 64, bf), dict(gate_kind=2, **full)
    yield "gated groups", (BETA, 2, T, 4, 40, 24, bf), dict(gate_kind=2, key_heads=2, normalize=True, **full)
    yield "groups in tiles", (BETA, 2, T, 4, 40, 24, bf), dict(backward=False, gate_kind=2, key_heads=2, **full)
    yield "wide groups in tiles", (BETA, 1, 1500, 4, 96, 80, bf), dict(backward=False, gate_kind=3, key_heads=2, **full)
    yield "short in tiles", (BETA, 3, 5, 2, 64, 128, bf), dict(backward=False, gate_kind=2, **full)
    yield "linear scalar", (LINEAR, 1, T, 2, 64, 64, bf), dict(gate_kind=2, gate_low=-1, **full)
    yield "linear constant", (LINEAR, 1, T, 2, 64, 64, bf), dict(gate_kind=1, gate_low=-0.1)
    yield "linear closed", (LINEAR, 1, T, 2, 64, 64, bf), dict(gate_kind=3, gate_low=-60, **full)
    yield "gated delta", (BETA, 2, T, 2, 64, 64, bf), dict(gate_kind=2, gate_low=-1, **full)
    yield "kda closed, groups", (BETA, 1, T, 4, 64, 64, bf), dict(gate_kind=3, gate_low=-60, key_heads=2, **full)
    yield "rwkv7 closed", (GENERAL, 1, T, 2, 64, 64, bf), dict(gate_kind=3, gate_low=-60, **full)
    yield "linear 128", (LINEAR, 1, T, 2, 128, 128, bf), dict(gate_kind=3, gate_low=-2, team=True, **full)
    yield "linear team 64", (LINEAR, 1, T, 2, 64, 64, bf), dict(gate_kind=3, gate_low=-2, team=True, **full)
    yield "kda team 64", (BETA, 1, T, 2, 64, 64, bf), dict(gate_kind=3, gate_low=-2, team=True, **full)
    yield "delta plain 128", (BETA, 1, T, 2, 128, 128, bf), dict(team=False, **full)
    yield "kda 128", (BETA, 1, T, 2, 128, 128, bf), dict(gate_kind=3, gate_low=-2, **full)
    yield "rwkv7 128", (GENERAL, 1, T, 2, 128, 128, bf), dict(gate_kind=3, gate_low=-0.6, team=True, **full)
    yield "kda 96 80", (BETA, 1, T, 2, 96, 80, bf), dict(gate_kind=3, gate_low=-2, team=True, **full)
    yield "gla 40 24", (LINEAR, 1, T, 2, 40, 24, bf), dict(gate_kind=3, gate_low=-2, team=True, **full)
    yield "norm kda", (BETA, 1, T, 2, 64, 64, bf), dict(gate_kind=3, gate_low=-2, normalize=True, **full)
    yield "norm kda wide", (BETA, 1, T, 2, 128, 128, bf), dict(gate_kind=3, gate_low=-2, normalize=True, **full)
    yield "norm linear", (LINEAR, 1, T, 2, 128, 128, bf), dict(gate_kind=2, gate_low=-1, normalize=True, **full)
    yield "norm gated", (BETA, 1, T, 2, 128, 128, bf), dict(gate_kind=2, gate_low=-1, normalize=True, **full)
    yield "kda float", (BETA, 1, T, 2, 64, 64, torch.float32), dict(gate_kind=3, gate_low=-2, **full)
    yield "linear float", (LINEAR, 1, T, 2, 64, 48, torch.float32), dict(gate_kind=2, gate_low=-2, **full)
    yield "rwkv7 float", (GENERAL, 1, T, 2, 64, 64, torch.float32), dict(gate_kind=3, gate_low=-0.6, **full)
    yield "short", (BETA, 4, 1, 8, 64, 64, bf), dict(gate_kind=2, gate_low=-1, state=True)


def scan_cases():
    f, bf = torch.float32, torch.bfloat16
    full = dict(state=True, reset=True)
    yield "scan bf16", (2, 300, 72, bf), dict(**full)
    yield "scan float", (2, 1100, 70, f), dict(log=False, **full)
    yield "scan wide", (1, 700, 6208, bf), dict(gate_dtype=bf)


SHAPES = [(8, 2048, 16, 64), (8, 2048, 8, 128), (1, 16384, 16, 128)]
BANDWIDTH = 4.3e9  # bytes a millisecond, a device-to-device copy on an H200


def milliseconds(work, runs=40):
    """Median of graph replays, so that launch gaps on the host do not count."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(runs)]
    for a, b in events:
        a.record()
        graph.replay()
        b.record()
    torch.cuda.synchronize()
    return sorted(a.elapsed_time(b) for a, b in events)[runs // 2]


def timed():
    """name, rule, options: the problems of gpu_ops.py."""
    bf, f = torch.bfloat16, torch.float32
    yield "simple_gla", LINEAR, dict(gate_kind=2)
    yield "gla", LINEAR, dict(gate_kind=3)
    yield "delta_rule", BETA, dict()
    yield "gated_delta_rule", BETA, dict(gate_kind=2, normalize=True)
    yield "kda", BETA, dict(gate_kind=3, normalize=True)
    yield "rwkv7", GENERAL, dict(gate_kind=3, gate_dtype=bf, gate_low=-0.6)
    yield "mlstm", LINEAR, dict(gate_kind=2, divisor=3)


def size_of(*tensors):
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


def time_all(dev, chosen, forward, shapes):
    for shape in shapes:
        B, T, H, D = SHAPES[shape]
        if chosen("hgrn"):
            s = Scan(dev, B, T, H * D, torch.bfloat16)
            f, b = milliseconds(s.forward), milliseconds(s.backprop)
            floor = size_of(s.decay, s.input, s.h) / BANDWIDTH
            floor_b = size_of(s.decay, s.dh, s.h, s.da, s.du) / BANDWIDTH
            print(f"{shape} hgrn: forward {f:.4f} (floor {floor:.4f}) backward {b:.4f} (floor {floor_b:.4f})"
                  f" both {f + b:.4f}", flush=True)
            del s
        for name, rule, kw in timed():
            if not chosen(name):
                continue
            try:
                m = Mixer(dev, rule, B, T, H, D, D, torch.bfloat16, **kw)
                floor = size_of(*m.inputs.values(), m.y) / BANDWIDTH
                floor_b = size_of(*m.inputs.values(), m.dy, *m.grads.values()) / BANDWIDTH
                parts = dict(prepare=m.prepare, walk=m.walk, back=lambda: m.walk(True))
                if m.divisor:
                    parts.update(stabilize=m.stabilize, normalize_back=m.normalize_back)
                if not forward:
                    parts["gradient"] = m.gradient
                ms = {n: milliseconds(w) for n, w in parts.items()}
                kept = milliseconds(m.forward)
                line = f"{shape} {name}: " + " ".join(f"{n} {x:.4f}" for n, x in ms.items())
                line += f" | training forward {kept:.4f} (floor {floor:.4f})"
                if not forward:
                    both = milliseconds(lambda: (m.forward(), m.backprop()))
                    line += f" both {both:.4f} (floor {floor + floor_b:.4f})"
                m.forget()
                if m.has_delta_tiles():
                    line += f" | prepare {milliseconds(m.prepare):.4f} walk {milliseconds(m.walk):.4f}"
                line += f" | forward {milliseconds(m.forward):.4f}"
                print(line, flush=True)
                del m, parts
            except Exception as e:
                print(shape, name, "failed:", e, flush=True)
            torch.cuda.empty_cache()


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--cubins")
    ap.add_argument("--emulate")
    ap.add_argument("--check", action="store_true")
    ap.add_argument("--time", action="store_true")
    ap.add_argument("--only", default="")
    ap.add_argument("--forward", action="store_true")
    ap.add_argument("--shapes", default="0,1,2")
    o = ap.parse_args()
    dev = Emulator(o.emulate) if o.emulate else Cuda(o.cubins)
    chosen = lambda label: not o.only or any(x in label for x in o.only.split(","))
    if o.check:
        for label, a, kw in scan_cases():
            if chosen(label):
                Scan(dev, *a, **kw).check(label)
        for label, a, kw in cases(bool(o.emulate)):
            if chosen(label):
                m = Mixer(dev, *a, **kw)
                check(m, label, m.backward and not o.forward)


    if o.time:
        print(torch.cuda.get_device_name(), flush=True)
        time_all(dev, chosen, o.forward, [int(x) for x in o.shapes.split(",")])


if __name__ == "__main__":
    main()
