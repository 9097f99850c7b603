"""gyre beside llama.cpp on one GGUF file: tokens a second of prompt and decoding, and perplexity.

    python3 llama_cpp.py MODEL.gguf --library libllama.so [--gyre .build/release/gyre]
        [--threads 2] [--prompt 512] [--tokens 128] [--rounds 5] [--text page.txt]

LIBRARY is any shared object that exports llama.cpp's C functions of 2025 or later: a build's libllama.so, or the
extension module of a Python wheel such as xllamacpp's. Runs alternate, medians are compared; both
sides generate greedily with the same number of threads, read the prompt in one batch of up to 512,
and have read the file before. Prompts are random ids, so that no tokenizer matters.
"""
import argparse
import ctypes as C
import json
import os
import statistics
import subprocess
import tempfile
import time

import numpy as np


class Params(C.Structure):
    """Parameters by value, larger than any version's: read and changed by offset only."""

    _fields_ = [("bytes", C.c_uint8 * 512)]


class Batch(C.Structure):
    _fields_ = [
        ("n_tokens", C.c_int32), ("token", C.c_void_p), ("embd", C.c_void_p), ("pos", C.c_void_p),
        ("n_seq_id", C.c_void_p), ("seq_id", C.c_void_p), ("logits", C.c_void_p),
    ]


class Llama:
    """llama.cpp through its C interface."""

    def __init__(self, library, path, context, threads):
        self.l = l = C.CDLL(library)
        for name in ["llama_model_default_params", "llama_context_default_params"]:
            getattr(l, name).restype = Params
        for name in ["llama_model_load_from_file", "llama_init_from_model", "llama_get_memory",
                     "llama_model_get_vocab"]:
            getattr(l, name).restype = C.c_void_p
        l.llama_get_logits_ith.restype = C.POINTER(C.c_float)
        l.llama_get_logits.restype = C.POINTER(C.c_float)
        l.llama_model_load_from_file.argtypes = [C.c_char_p, Params]
        l.llama_init_from_model.argtypes = [C.c_void_p, Params]
        l.llama_decode.argtypes = [C.c_void_p, Batch]
        self.silence = C.CFUNCTYPE(None, C.c_int, C.c_char_p, C.c_void_p)(lambda *_: None)
        l.llama_log_set(self.silence, None)
        l.llama_backend_init()
        self.model = l.llama_model_load_from_file(path.encode(), l.llama_model_default_params())
        assert self.model, f"llama.cpp does not load {path}"
        params = l.llama_context_default_params()
        sizes = C.cast(C.byref(params), C.POINTER(C.c_uint32))
        sizes[0], sizes[1], sizes[2] = context, 512, 512  # n_ctx, n_batch, n_ubatch
        self.context = C.c_void_p(l.llama_init_from_model(self.model, params))
        assert self.context, "llama.cpp makes no context"
        l.llama_set_n_threads(self.context, threads, threads)
        self.vocab = C.c_void_p(l.llama_model_get_vocab(C.c_void_p(self.model)))
        self.size = l.llama_vocab_n_tokens(self.vocab)

    def clear(self):
        self.l.llama_memory_clear(C.c_void_p(self.l.llama_get_memory(self.context)), C.c_bool(True))

    def read(self, tokens, all_logits=False):
        """Reads tokens; the logits of the last one, or of all."""
        rows = []
        for start in range(0, len(tokens), 512):
            piece = np.ascontiguousarray(tokens[start:start + 512], np.int32)
            flags = np.full(len(piece), 1, np.int8)
            batch = Batch(len(piece), piece.ctypes.data, None, None, None, None,
                          flags.ctypes.data if all_logits else None)
            assert self.l.llama_decode(self.context, batch) == 0
            count = len(piece) if all_logits else 1
            p = self.l.llama_get_logits(self.context) if all_logits else \
                self.l.llama_get_logits_ith(self.context, C.c_int32(-1))
            rows.append(np.ctypeslib.as_array(p, (count, self.size)).copy())
        return np.concatenate(rows) if all_logits else rows[-1]

    def time(self, prompt, tokens):
        self.clear()
        start = time.perf_counter()
        logits = self.read(prompt)
        middle = time.perf_counter()
        for _ in range(tokens):
            logits = self.read([int(logits[0].argmax())])
        end = time.perf_counter()
        return len(prompt) / (middle - start), tokens / (end - middle)

    def tokenize(self, text):
        data = text.encode()
        out = (C.c_int32 * (len(data) + 16))()
        count = self.l.llama_tokenize(self.vocab, C.c_char_p(data), C.c_int32(len(data)), out,
                                      C.c_int32(len(out)), C.c_bool(False), C.c_bool(False))
        return np.array(out[:count], np.int32)


def save(path, **arrays):
    from safetensors.numpy import save_file
    save_file(arrays, path)


def gyre_time(gyre, model, prompt, tokens, threads):
    done = subprocess.run(
        [gyre, "bench", "--model-file", model, "--prompt", str(prompt), "--tokens", str(tokens),
         "--threads", str(threads), "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    return row["prompt_tokens_per_s"], row["decode_tokens_per_s"]


def gyre_logits(gyre, model, ids, threads, folder, dtype=None):
    from safetensors.numpy import load_file
    source, target = (os.path.join(folder, n) for n in ["ids.safetensors", "logits.safetensors"])
    save(source, input_ids=ids[None])
    command = [gyre, "logits", model, "--input", source, "--output", target, "--threads", str(threads)]
    done = subprocess.run(command + (["--dtype", dtype] if dtype else []), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(target)["logits"][0]


def perplexity(logits, ids):
    x = logits[:-1].astype(np.float64)
    x -= x.max(-1, keepdims=True)
    loss = np.log(np.exp(x).sum(-1)) - x[np.arange(len(ids) - 1), ids[1:]]
    return float(np.exp(loss.mean()))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("--library", required=True)
    p.add_argument("--gyre", default=".build/release/gyre")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--prompt", type=int, default=512)
    p.add_argument("--tokens", type=int, default=128)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--text", help="also perplexity on the first 2048 tokens of this file")
    a = p.parse_args()
    peer = Llama(a.library, a.model, max(a.prompt + a.tokens, 2048) + 64, a.threads)
    prompt = np.random.default_rng(0).integers(0, peer.size, a.prompt).astype(np.int32)
    peer.time(prompt[:64], 8)
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(a.rounds):
            theirs.append(peer.time(prompt, a.tokens))
            ours.append(gyre_time(a.gyre, a.model, a.prompt, a.tokens, a.threads))
        for i, name in enumerate(["prompt", "decode"]):
            x, y = (statistics.median(r[i] for r in rows) for rows in (ours, theirs))
            print(f"{name:7} gyre {x:8.1f}  llama.cpp {y:8.1f} tokens/s  ratio {x / y:.2f}")
        texts = [("random ids", prompt[:256])]
        if a.text:
            texts.append((a.text, peer.tokenize(open(a.text).read())[:2048]))
        for name, ids in texts:
            peer.clear()
            reference = peer.read(ids, all_logits=True)
            y = perplexity(reference, ids)
            for dtype in (None, "f32"):
                logits = gyre_logits(a.gyre, a.model, ids, a.threads, folder, dtype)
                x = perplexity(logits, ids)
                error = np.linalg.norm(logits - reference) / np.linalg.norm(reference)
                print(f"{os.path.basename(name)}: perplexity gyre {dtype or 'stored'} {x:.4f}  "
                      f"llama.cpp {y:.4f}  {100 * (x / y - 1):+.3f} %  logits differ by {error:.1e}")


if __name__ == "__main__":
    main()
