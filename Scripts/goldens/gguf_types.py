"""A GGUF file with every element type and its values as the public `gguf` package unpacks them.

    python3 gguf_types.py OUTPUT_FOLDER     (needs gguf, numpy, safetensors)
"""
import sys
import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q
from safetensors.numpy import save_file

out = sys.argv[1]
rng = np.random.default_rng(1)
writer = gguf.GGUFWriter(f"{out}/types.gguf", "llama")
writer.add_uint32("llama.block_count", 3)
writer.add_float32("llama.rope.freq_base", 1e4)
writer.add_bool("some.flag", True)
writer.add_array("some.integers", [1, -2, 3])
writer.add_array("tokenizer.ggml.tokens", ["a", "é", ""])
expected = {}
for kind in (Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0, Q.Q4_K, Q.Q5_K, Q.Q6_K):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = 3, 512
    data = rng.integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
    # Scales are halves: finite ones.
    halves = {Q.Q4_0: [0], Q.Q4_1: [0, 2], Q.Q5_0: [0], Q.Q5_1: [0, 2], Q.Q8_0: [0], Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208]}[kind]
    for place in halves:
        data[..., place:place + 2] = rng.standard_normal((rows, columns // block, 1)).astype(np.float16).view(np.uint8)
    data = data.reshape(rows, -1)
    writer.add_tensor(kind.name, data, raw_dtype=kind)
    expected[kind.name] = gguf.dequantize(data, kind).reshape(rows, columns).astype(np.float32)
for name, dtype in (("F32", np.float32), ("F16", np.float16)):
    values = rng.standard_normal((2, 3, 5)).astype(dtype)
    writer.add_tensor(name, values)
    expected[name] = values.astype(np.float32)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
save_file(expected, f"{out}/types.safetensors")
