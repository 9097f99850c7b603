"""Makes Tests/Fixtures/safetensors with the public safetensors library.

Files must be read as the library means them and, for the same tensors, be written byte for byte the same.

    python Scripts/goldens/safetensors_files.py        # needs numpy, safetensors

- floats.safetensors: float16, bfloat16, float64 with subnormals, infinities, NaN, zeros; beside each `x` its float32
  values as `x.float32`, computed by NumPy.
- types.safetensors: one or two small tensors of every element type the library writes; names and metadata that need
  escapes (one text, the library writes several in random order); a scalar; an empty tensor.
- sharded/: two shards and their index.
"""

import json
import pathlib
import sys

import numpy as np

# This script has the library's name; its own folder must not be searched first.
sys.path = [p for p in sys.path if p and pathlib.Path(p).resolve() != pathlib.Path(__file__).resolve().parent]
from safetensors import TensorSpec, serialize  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

OUT = pathlib.Path(__file__).resolve().parents[2] / "Tests" / "Fixtures" / "safetensors"


def save(tensors, metadata):
    """The library's bytes for {name: (dtype, array of the raw elements)}."""
    kept = {name: (dtype, np.ascontiguousarray(array)) for name, (dtype, array) in tensors.items()}
    specs = {
        name: TensorSpec(dtype=dtype, shape=list(tensors[name][1].shape), data_ptr=array.ctypes.data, data_len=array.nbytes)
        for name, (dtype, array) in kept.items()
    }
    return bytes(serialize(specs, metadata=metadata))


def floats():
    random = np.random.default_rng(7)
    edge = np.array([0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0x3C00], np.uint16)
    half = np.concatenate([edge, random.integers(0, 65536, 501).astype(np.uint16)]).view(np.float16)
    half = np.where(np.isnan(half), np.float16(np.nan), half).reshape(2, 256)
    brain = random.integers(0, 65536, (3, 85)).astype(np.uint16)
    brain[0, :4] = [0, 0x8000, 0x7F80, 0x0001]
    double = np.concatenate([
        np.array([0.0, -0.0, 1e-300, 1e300, -1e300, np.inf, np.nan, 1 + 2**-24, 1 + 3 * 2**-24, 1e-40, 0.1]),
        random.standard_normal(90) * 10.0 ** random.integers(-44, 38, 90),
    ])
    with np.errstate(over="ignore", under="ignore"):
        tensors = {
            "half": ("float16", half),
            "half.float32": ("float32", half.astype(np.float32)),
            "brain": ("bfloat16", brain),
            "brain.float32": ("float32", (brain.astype(np.uint32) << 16).view(np.float32)),
            "double": ("float64", double),
            "double.float32": ("float32", double.astype(np.float32)),
        }
    return save(tensors, {"format": "np"})


def types():
    names = ["bool", "uint8", "int8", "float8_e5m2", "float8_e4m3fn", "int16", "uint16", "float16", "bfloat16", "int32",
             "uint32", "float32", "complex64", "float64", "int64", "uint64"]
    width = {"bool": 1, "uint8": 1, "int8": 1, "float8_e5m2": 1, "float8_e4m3fn": 1, "int16": 2, "uint16": 2,
             "float16": 2, "bfloat16": 2, "int32": 4, "uint32": 4, "float32": 4, "complex64": 8, "float64": 8,
             "int64": 8, "uint64": 8}
    tensors = {}
    for index, name in enumerate(names):
        for copy in range(2):
            values = (np.arange(6 * width[name]) + index * 31 + copy * 7) % 120
            raw = (values % 2 if name == "bool" else values).astype(np.uint8).view(f"V{width[name]}").reshape(2, 3)
            tensors[f"{'zy'[copy]}.{name}"] = (name, raw)
    tensors["empty"] = ("float32", np.zeros((0, 5), np.float32))
    tensors["scalar"] = ("float32", np.array(0.5, np.float32))
    tensors['quote " slash / back \\ tab \t bell \x07 é 漢 🙂'] = ("uint8", np.array([42], np.uint8))
    return save(tensors, {"text": 'line\nend "q" ü'})


def sharded(folder):
    folder.mkdir(parents=True, exist_ok=True)
    shards = {
        "model-00001-of-00002.safetensors": {
            "embedding": np.arange(12, dtype=np.float32).reshape(4, 3) / 4,
            "layers.0.weight": -np.arange(9, dtype=np.float32).reshape(3, 3),
        },
        "model-00002-of-00002.safetensors": {"head": np.arange(6, dtype=np.float16).reshape(2, 3)},
    }
    for name, tensors in shards.items():
        save_file(tensors, folder / name, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(t.nbytes for s in shards.values() for t in s.values()), "extra": [1.5e3, None]},
        "weight_map": {tensor: name for name, tensors in shards.items() for tensor in tensors},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "floats.safetensors").write_bytes(floats())
    (OUT / "types.safetensors").write_bytes(types())
    sharded(OUT / "sharded")
