"""Inspector of built engines: reads the dtypes in which an engine computes its products.

They may differ from those of the network. TensorRT-RTX writes the program of an engine into it as text, which shows
what is otherwise visible on a GPU only: 1.6 and 1.7 keep the weights of a quantized convolution in 8 bits, and
dequantize them to compute in half precision.
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
    """Return the dtype that each convolution and matrix product of an engine multiplies, by layer name.

    It is empty for an engine without such text, as those of TensorRT. Products that are fused with others are missing.
    """
    found = {}
    for program in _PROGRAM.findall(plan):
        text = program.decode("ascii")
        kinds = {name: kind for _, name, kind in _TENSOR.findall(text)}
        for _, layer, left, right in _PRODUCT.findall(text):
            kind = kinds.get(
                right, kinds.get(left, "unknown")
            )  # only one of several values in shared memory has a line
            found[layer] = _DTYPES.get(kind, kind)
    return found
