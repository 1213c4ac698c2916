"""Realised: in which dtypes an engine computes its products, whatever the network asked for.

TensorRT-RTX writes the program of an engine into it as text. That tells what is otherwise seen on a GPU only: 1.6 and
1.7 keep the weights of a quantized convolution in 8 bits, and dequantize them to compute in half precision.
"""

from __future__ import annotations

import re

_PROGRAM = re.compile(rb"\ndescriptors \{\n[\t\n -~]+")
_TENSOR = re.compile(r'tensor=\{.*? name=("?)(.+?)\1 .*? type=(\w+) \}')
_PRODUCT = re.compile(
    r' (?:corrltn|deconvolution|fully_connected)=\{ name=("?)(.+?)\1 output=.*? input=\{ ?"(.+?)" "(.+?)" '
)
_DTYPES = {"half": "float16", "float": "float32", "bf16": "bfloat16", "fp8_e4m3": "float8_e4m3fn"}


def product_dtypes(plan: bytes) -> dict[str, str]:
    """For each convolution and matrix product of an engine, by layer name, the dtype of what it multiplies.

    Empty for an engine without such text, as those of TensorRT are; products that are fused with others are not in it.
    """
    found = {}
    for program in _PROGRAM.findall(plan):
        text = program.decode("ascii")
        kinds = {name: kind for _, name, kind in _TENSOR.findall(text)}
        for _, layer, left, right in _PRODUCT.findall(text):
            kind = kinds.get(right, kinds.get(left, "unknown"))  # of values in shared memory, only one has its own line
            found[layer] = _DTYPES.get(kind, kind)
    return found
