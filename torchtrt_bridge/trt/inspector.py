"""Inspector of built engines: reads the steps of an engine, and the dtypes in which it computes its products.

These may differ from those of the network. TensorRT-RTX writes the program of an engine into it as text, which shows
what is otherwise visible on a GPU only: 1.6 and 1.7 keep the weights of a quantized convolution in 8 bits, and
dequantize them to compute in half precision.
"""

from __future__ import annotations

import dataclasses
import re

from torchtrt_bridge.trt.engine_program import PROGRAM

_TENSOR = re.compile(r'tensor=\{.*? name=("?)(.+?)\1 .*? type=(\w+) \}')
_PRODUCT = re.compile(
    r' (?:corrltn|deconvolution|fully_connected)=\{ name=("?)(.+?)\1 output=.*? input=\{ ?"(.+?)" "(.+?)" '
)
_STEP = re.compile(r'^ *(\w+)=\{ name=("?)(.+?)\2 (?:fqn|output|input|args)=', re.MULTILINE)
# The names of the inputs and of the outputs of a program that is an engine's own, not that of one of its kernels.
_HEADER = re.compile(rb"\n *inputs=\{ (.*)\}\n *input_sync_idx=.*\n *input_myl_place=.*\n *outputs=\{ (.*)\}")
_NAME = re.compile(r'"[^"]*"|[^" ]+')
_SUMS = re.compile(r" accumulation_type=(\d+) ")
_SUMS_IN = {"0": "float16", "2": "float32"}  # of a product in fp16; for others it says nothing
_DTYPES = {"half": "float16", "float": "float32", "bf16": "bfloat16", "fp8_e4m3": "float8_e4m3fn"}


def outputs_taken_for_inputs(plan: bytes) -> list[int]:
    """Return the places, among an engine's outputs, of those that it takes for inputs, and so does not write.

    TensorRT-RTX up to 1.7 has such engines: a concatenation of all slices of an input is taken for the input. A cache
    that is updated in place is among them too. None for an engine without the text of its program.
    """
    found = []
    for header in _HEADER.findall(plan):
        inputs, outputs = (_NAME.findall(names.decode("ascii")) for names in header)
        found += [place for place, name in enumerate(outputs) if name in inputs]
    return found


def product_dtypes(plan: bytes) -> dict[str, str]:
    """Return the dtype that each convolution and matrix product of an engine multiplies, by layer name.

    It is empty for an engine without such text, as those of TensorRT. Products that are fused with others are missing.
    """
    found = {}
    for program in PROGRAM.findall(plan):
        text = program.decode("ascii")
        kinds = {name: kind for _, name, kind in _TENSOR.findall(text)}
        for _, layer, left, right in _PRODUCT.findall(text):
            kind = kinds.get(
                right, kinds.get(left, "unknown")
            )  # only one of several values in shared memory has a line
            found[layer] = _DTYPES.get(kind, kind)
    return found


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of an engine: a kernel that TensorRT generates, or an operation that its libraries do.

    kind: "function" for a generated kernel, which is named after what it fuses; else "fully_connected", "corrltn", or
        an element-wise operation, as "add", which the kernel of the product before it does too.
    sums_in: of a product of fp16 matrices, the dtype that it is summed in; else empty.
    """

    kind: str
    name: str
    sums_in: str = ""


def steps(plan: bytes) -> list[Step]:
    """Return the steps of an engine of TensorRT-RTX, in order; nothing for one without the text of its program."""
    found = []
    for program in PROGRAM.findall(plan):
        _, _, main = program.decode("ascii").partition("\nmain {")
        for line in main.splitlines():
            match = _STEP.match(line)
            if match:
                sums = _SUMS.search(line)
                found.append(Step(match[1], match[3], _SUMS_IN.get(sums[1], "") if sums else ""))
    return found
