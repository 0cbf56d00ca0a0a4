"""Makes tests/fixtures/gguf/blocks.safetensors: random blocks of every storage type that the GGUF
reader takes, and what Python's gguf package dequantises them to.

    pip install gguf safetensors numpy
    python tests/python/make_gguf_blocks.py
"""

from pathlib import Path

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as Kind
from safetensors.numpy import save_file

BLOCKS = 5
# Where a block has its f16 scales: random bits there would be NaN or infinite.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}


def blocks(name: str, random: np.random.Generator) -> np.ndarray:
    kind = Kind[name]
    if name in ("F32", "F16", "BF16"):
        values = random.normal(size=64).astype(np.float32)
        return gguf.quantize(values, kind).view(np.uint8)
    _, width = GGML_QUANT_SIZES[kind]
    data = random.integers(0, 256, size=(BLOCKS, width), dtype=np.uint8)
    for at in SCALES[name]:
        scale = random.normal(scale=0.02, size=(BLOCKS, 1)).astype(np.float16)
        data[:, at:at + 2] = scale.view(np.uint8)
    # A subnormal scale, as very small blocks have.
    data[0, SCALES[name][0]:SCALES[name][0] + 2] = np.array([0x0123], np.uint16).view(np.uint8)
    return data.reshape(-1)


def main() -> None:
    random = np.random.default_rng(2026)
    tensors = {}
    for name in ("F32", "F16", "BF16", *SCALES):
        data = blocks(name, random)
        shaped = data.view({"F32": np.float32, "F16": np.float16}.get(name, np.uint8))
        values = gguf.dequantize(shaped, Kind[name]).astype(np.float32).reshape(-1)
        tensors[f"{name}.bytes"] = np.ascontiguousarray(data)
        tensors[f"{name}.values"] = np.ascontiguousarray(values)
    out = Path(__file__).parent.parent / "fixtures" / "gguf" / "blocks.safetensors"
    save_file(tensors, out)
    print(out, out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
