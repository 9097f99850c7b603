#!/usr/bin/env python3
"""Compiles every CUDA kernel file with NVRTC for sm_80 and sm_90a; needs no GPU.

Says so and succeeds where NVRTC is not found (`pip install nvidia-cuda-nvrtc`, or GYRE_CUDA_PATH).
A kernel fails whose machine code has fewer products of four warps (wgmma) than its PTX: the compiler takes two for one
that begin with accumulators nothing was written to. With --resources also prints registers, spills and shared memory of each kernel.
"""
import argparse, ctypes, functools, glob, multiprocessing, os, re, struct, sys, time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "Sources", "CGyreCUDASources")
PLACES = [
    *[d + s for d in os.environ.get("GYRE_CUDA_PATH", "").split(":") if d for s in ("", "/lib64", "/lib")],
    "/usr/local/cuda/lib64",
    *[p + "/nvidia/*/lib" for p in sys.path],
    "/opt/*/lib/python3*/site-packages/nvidia/*/lib",
    os.path.expanduser("~/.local/lib/python3*/site-packages/nvidia/*/lib"),
]


def find():
    for place in PLACES:
        for path in sorted(glob.glob(place + "/libnvrtc.so.1[0-9]"), reverse=True):
            for builtins in glob.glob(os.path.dirname(path) + "/libnvrtc-builtins.so.1*"):
                ctypes.CDLL(builtins, mode=ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(path), path
    return None, None


def variants(text):
    """The define sets that a file names in a line `// Variants: NAME=0..19` or `NAME=64,128`."""
    listed = re.search(rb"// Variants: (\w+)=(\d+(?:,\d+)+)", text)
    if listed:
        return [[f"-D{listed[1].decode()}={n.decode()}"] for n in listed[2].split(b",")]
    found = re.search(rb"// Variants: (\w+)=(\d+)\.\.(\d+)", text)
    if not found:
        return [[]]
    return [[f"-D{found[1].decode()}={i}"] for i in range(int(found[2]), int(found[3]) + 1)]


def text_of(nvrtc, kind, program):
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
    content = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{kind}")(program, content)
    return content.raw


def lost_products(nvrtc, program):
    """How many wgmma of the PTX the machine code lacks; groups without any have one in their place."""
    asked = text_of(nvrtc, "PTX", program).count(b"wgmma.mma_async")
    if not asked:
        return 0
    code = text_of(nvrtc, "CUBIN", program)
    words = struct.unpack_from(f"<{len(code) // 16 * 2}Q", code)[::2]
    return asked - sum(w & 0xBFE == 0x9F0 and w != 0x3FFF79F0 for w in words)


def compile(nvrtc, text, name, arch, headers, defines, verbose):
    program = ctypes.c_void_p()
    names = (ctypes.c_char_p * len(headers))(*[h.encode() for h in headers])
    texts = (ctypes.c_char_p * len(headers))(*headers.values())
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, name.encode(), len(headers), texts, names)
    options = [f"--gpu-architecture={arch}", "--std=c++17", *defines]
    if verbose:
        options.append("--ptxas-options=-v")
    array = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
    code = nvrtc.nvrtcCompileProgram(program, len(options), array)
    log = text_of(nvrtc, "ProgramLog", program).rstrip(b"\0").decode(errors="replace")
    lost = 0 if code else lost_products(nvrtc, program)
    if lost > 0:
        code, log = 1, f"{log}{name}: the machine code lacks {lost} products\n"
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return code, log


def check(headers, resources, job):
    """A file for one architecture, in all variants: lines to print, and whether it compiles."""
    file, arch = job
    nvrtc, _ = find()
    start = time.time()
    text = open(file, "rb").read()
    code, log, count = 0, "", 0
    for defines in variants(text):
        result, part = compile(nvrtc, text, os.path.basename(file), arch, headers, defines, resources)
        code, log, count = code or result, log + part, count + 1
        if code:
            break
    what = f" {count} variants" if count > 1 else ""
    out = [f"{os.path.basename(file):32} {arch:7} {'ok' if code == 0 else 'FAILED'} {time.time() - start:5.1f} s{what}"]
    if resources and code == 0:
        name = ""
        for line in log.splitlines():
            found = re.search(r"Compiling entry function '(\w+)'", line)
            name = found.group(1) if found else name
            if "Used" in line:
                out.append(f"    {name}: {line.split('Used')[1].strip()}")
            elif "spill" in line and " 0 bytes spill stores" not in line:
                out.append(f"    {name}: SPILLS {line.strip()}")
    elif log.strip():
        out.append(log)
    return "\n".join(out), code == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", help="names without extension; all by default")
    parser.add_argument("--arch", action="append")
    parser.add_argument("--resources", action="store_true")
    o = parser.parse_args()
    nvrtc, path = find()
    if not nvrtc:
        print("NOTICE: CUDA kernels were not compiled: NVRTC was not found")
        return 0
    headers = {os.path.basename(f): open(f, "rb").read()
               for f in glob.glob(ROOT + "/cuda/*.cuh") + glob.glob(ROOT + "/include/*args*.h")}
    files = sorted(glob.glob(ROOT + "/cuda/*.cu"))
    if o.files:
        files = [f for f in files if os.path.basename(f)[:-3] in o.files]
    jobs = [(file, arch) for file in files for arch in o.arch or ["sm_80", "sm_90a"]]
    # Processes of their own: NVRTC takes turns within one.
    with multiprocessing.get_context("fork").Pool(min(len(jobs), os.cpu_count() or 1)) as pool:
        failed = 0
        for text, is_good in pool.imap(functools.partial(check, headers, o.resources), jobs, 1):
            print(text, flush=True)
            failed += not is_good
    print(f"{len(files)} files with {path}: {'all compile' if not failed else f'{failed} FAILED'}")
    return failed != 0


sys.exit(main())
