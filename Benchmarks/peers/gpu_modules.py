"""The project's CUDA kernels loaded without the library: argument structures, NVRTC, the driver through ctypes."""
import ctypes as C
import os
import re

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCES = os.path.join(HERE, "..", "..", "Sources", "CGyreCUDASources", "cuda")


class NormalizerArgs(C.Structure):
    """chunk_common.cuh"""
    _fields_ = [(n, C.c_void_p) for n in (
        "input_gate initial_max final_max stabilizers row_sums key_sums initial_vector final_vector vectors amounts dn "
        "d_amounts query_sums vector_gradients d_final_vector d_initial_vector d_input").split()] + [
            ("input_is_float", C.c_int), ("divisor", C.c_int), ("floor", C.c_float), ("epsilon", C.c_float)]


class MixerArgs(C.Structure):
    """chunk_common.cuh"""
    _fields_ = [(n, C.c_void_p) for n in (
        "q k v a b gate beta reset initial y final records extras states written state_gradients dy d_final "
        "dq dk dv da db d_gate d_beta d_initial norms mild").split()] + [(n, C.c_int) for n in (
            "batch tokens heads key_heads keys values chunks gate_kind gate_is_float beta_is_float"
        ).split()] + [("scale", C.c_float), ("normalize", C.c_int), ("n", NormalizerArgs)]


class SegmentArgs(C.Structure):
    """chunk_walk.cuh"""
    _fields_ = [("m", MixerArgs), ("states", C.c_void_p), ("decays", C.c_void_p), ("segments", C.c_int),
                ("steps", C.c_int)]


class LinearTileArgs(C.Structure):
    """linear_attention_tiles.cu"""
    _fields_ = [("q", C.c_ubyte * 128), ("k", C.c_ubyte * 128), ("v", C.c_ubyte * 128), ("m", MixerArgs),
                ("segment_states", C.c_void_p), ("segment_gates", C.c_void_p), ("segments", C.c_int),
                ("segment_chunks", C.c_int)]


class DeltaTileArgs(C.Structure):
    """delta_tiles.cuh"""
    _fields_ = [("tiles", C.c_ubyte * 128), ("q", C.c_ubyte * 128), ("k", C.c_ubyte * 128), ("rows", C.c_ubyte * 128),
                ("m", MixerArgs), ("segment_states", C.c_void_p), ("segment_transitions", C.c_void_p),
                ("segments", C.c_int), ("segment_chunks", C.c_int)]


class DeltaPrepareArgs(C.Structure):
    """delta_rule_prepare_tiles.cu"""
    _fields_ = [("q", C.c_ubyte * 128), ("k", C.c_ubyte * 128), ("tiles", C.c_ubyte * 128), ("m", MixerArgs),
                ("unused", C.c_long * 4)]


class DeltaGradientArgs(C.Structure):
    """delta_rule_gradient_tiles.cu"""
    _fields_ = [(n, C.c_ubyte * 128) for n in "q k dy dv written dq dk".split()] + [
        ("m", MixerArgs), ("unused", C.c_long * 3)]


class ScanArgs(C.Structure):
    """diagonal_scan.cu"""
    _fields_ = [(n, C.c_void_p) for n in "decay input initial reset h final dh d_final da du d_initial".split()] + [
        (n, C.c_int) for n in "batch tokens channels decay_is_log decay_is_float".split()]


# A kernel is in the first of these that its name starts with.
FILES = ("linear_attention_tiles", "linear_attention", "delta_rule_prepare_tiles", "delta_rule_gradient_tiles",
         "delta_rule_tiles_back", "delta_rule_tiles", "delta_rule", "diagonal_scan")


def module_key(kernel):
    """The source that holds a kernel, and the name of its cubin: one a size and element type."""
    source = next(n for n in FILES if kernel.startswith(n))
    if source == "diagonal_scan":
        return source, source
    return source, source + re.search(r"(_bf16|_float|)_k\d+(?=$|_v)", kernel)[0]


def inline(path, seen):
    """The source with its own headers in place."""
    out = []
    for line in open(path):
        m = re.match(r'#include "(.*\.c?u?h)"', line)
        if m and m[1] != "host.h":
            if m[1] not in seen:
                seen.add(m[1])
                folder = SOURCES if m[1].endswith("cuh") else os.path.join(SOURCES, "..", "include")
                out.append(inline(os.path.join(folder, m[1]), seen))
        elif not line.startswith("#pragma once") and '"host.h"' not in line:
            out.append(line)
    return "".join(out)


def compile(path, key, arch=None, rtc=None, log=False):
    """A cubin; `key` ends in the element type and size of a mixer."""
    rtc = rtc or C.CDLL("libnvrtc.so.13")
    if not arch:
        major, minor = torch.cuda.get_device_capability()
        arch = f"sm_{major}{minor}" + ("a" if major == 9 else "")
    options = [f"--gpu-architecture={arch}", "--std=c++17"] + (["--ptxas-options=-v"] if log else [])
    m = re.search(r"(_bf16|_float|)_k(\d+)$", key)
    if m:
        options += [f"-DGYRE_KEYS={m[2]}"] + (["-DGYRE_FLOAT"] if m[1] == "_float" else [])
    program, size = C.c_void_p(), C.c_size_t()
    rtc.nvrtcCreateProgram(C.byref(program), inline(path, set()).encode(), key.encode(), 0, None, None)
    code = rtc.nvrtcCompileProgram(program, len(options), (C.c_char_p * len(options))(*[o.encode() for o in options]))
    rtc.nvrtcGetProgramLogSize(program, C.byref(size))
    text = C.create_string_buffer(size.value)
    rtc.nvrtcGetProgramLog(program, text)
    if log:
        print(text.value.decode())
    if code:
        raise SystemExit(text.value.decode())
    rtc.nvrtcGetCUBINSize(program, C.byref(size))
    image = C.create_string_buffer(size.value)
    rtc.nvrtcGetCUBIN(program, image)
    return image.raw


class Cuda:
    """The driver API and NVRTC through ctypes, in torch's context."""
    device = "cuda"

    def __init__(self, cubins=None):
        torch.cuda.init()
        torch.empty(1, device="cuda")
        self.cu = C.CDLL("libcuda.so.1")
        self.cubins = cubins
        self.functions, self.modules = {}, {}

    def module(self, kernel):
        source, key = module_key(kernel)
        if key not in self.modules:
            if self.cubins:
                image = open(os.path.join(self.cubins, key + ".cubin"), "rb").read()
            else:
                image = compile(os.path.join(SOURCES, source + ".cu"), key)
            self.modules[key] = C.c_void_p()
            self.ok(self.cu.cuModuleLoadData(C.byref(self.modules[key]), image))
        return self.modules[key]

    @staticmethod
    def ok(code):
        if code:
            raise RuntimeError(f"CUDA driver error {code}")

    def function(self, name, smem):
        key = (name, smem)
        if key not in self.functions:
            f = C.c_void_p()
            self.ok(self.cu.cuModuleGetFunction(C.byref(f), self.module(name), name.encode()))
            self.ok(self.cu.cuFuncSetAttribute(f, 8, smem))  # dynamic shared memory
            self.functions[key] = f
        return self.functions[key]

    def map(self, x):
        """A tensor [batch, rows, heads, channels] by boxes of 64 rows and channels of a head."""
        B, T, H, D = x.shape
        return self.encode(x, (D, H, T, B), (2 * D, 2 * D * H, 2 * D * H * T), 3)

    def record_map(self, records, K, count, bytes):
        """K̃ | W | Q̄ (| B̂) of delta rules' records, 64 columns by 64 rows as they lie."""
        return self.encode(records[8192:], (64, K // 64, 256, count), (128, 2 * K, bytes), 0)

    def encode(self, x, sizes, strides, swizzle):
        room = (C.c_ubyte * 192)()
        at = (C.addressof(room) + 63) & ~63
        self.ok(self.cu.cuTensorMapEncodeTiled(
            C.c_void_p(at), 9, 4, C.c_void_p(x.data_ptr()), (C.c_uint64 * 4)(*sizes), (C.c_uint64 * 3)(*strides),
            (C.c_uint32 * 4)(64, 1, 64, 1), (C.c_uint32 * 4)(1, 1, 1, 1), 0, swizzle, 2, 0))
        return (C.c_ubyte * 128).from_buffer_copy(C.string_at(at, 128))

    def launch(self, name, grid, threads, smem, args):
        f = self.function(name, smem)
        pointer = (C.c_void_p * 1)(C.cast(C.pointer(args), C.c_void_p))
        self.ok(self.cu.cuLaunchKernel(
            f, *grid, threads, 1, 1, smem, C.c_void_p(torch.cuda.current_stream().cuda_stream), pointer, None))


class Emulator:
    """Development without a GPU: a host build of the sources."""
    device = "cpu"

    def __init__(self, folder):
        self.folder, self.libraries = folder, {}

    def launch(self, name, grid, threads, smem, args):
        key = "diagonal_scan" if name.startswith("diagonal") else (
            name.split("_")[0] + re.search(r"_(bf16|float)_k\d+$", name)[0])
        if key not in self.libraries:
            self.libraries[key] = C.CDLL(os.path.join(self.folder, f"emu_{key}.so"))
        if self.libraries[key].launch(name.encode(), *grid, threads, smem, C.byref(args)):
            raise RuntimeError(f"no kernel {name}")
