"""Probes of the installed TensorRT: a capability is known after the build of a network of a few layers.

A probe is one function that writes such a network. The cache keeps its answer by TensorRT version and targets.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

import torch

from torchtrt_bridge.cache import EngineCache, source_digest
from torchtrt_bridge.errors import BridgeError
from torchtrt_bridge.options import Options
from torchtrt_bridge.report.log import warn_once
from torchtrt_bridge.trt.dtypes import trt_dtype_from_torch
from torchtrt_bridge.trt.error_log import ErrorLog
from torchtrt_bridge.trt.library import PORTABLE, TensorRTLibrary, current_target

# Kind of the cache entries of answers, which are JSON.
KIND = "probe"


@dataclasses.dataclass(frozen=True)
class Support:
    """Answer of a probe: TensorRT builds the capability, or `reason` holds its own message."""

    yes: bool
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Probe:
    """Probe of one capability.

    layer: the method of `INetworkDefinition` that the capability needs.
    write: writes the network to build, given the TensorRT module and an empty network.
    """

    layer: str
    write: Callable[[Any, Any], None]


PROBES: dict[str, Probe] = {}

# Two threads that ask the same at a time may both build the network, unless the cache on disk lets one of them wait.
_answers: dict[str, Support] = {}


def probe(layer: str) -> Callable[[Callable[[Any, Any], None]], Callable[[Any, Any], None]]:
    """Register a function as the probe of the capability of its name."""

    def register(write: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        if write.__name__ in PROBES:
            raise ValueError(f"{write.__name__} has a probe already.")
        PROBES[write.__name__] = Probe(layer, write)
        return write

    return register


@probe(layer="add_attention")
def attention(trt: Any, network: Any) -> None:
    """Write attention layers as the converter does, in fp16 and in fp32, under one mask of bools."""
    mask = network.add_input("mask", trt_dtype_from_torch(trt, torch.bool), (1, 1, 16, 16))
    for dtype in (torch.float16, torch.float32):
        kind = trt_dtype_from_torch(trt, dtype)
        q, k, v = (network.add_input(f"{name}_{kind.name}", kind, (1, 2, 16, 64)) for name in "qkv")
        layer = network.add_attention(q, k, v, trt.AttentionNormalizationOp.SOFTMAX, False)
        layer.decomposable = True
        layer.mask = mask
        network.mark_output(layer.get_output(0))


@probe(layer="add_kv_cache_update")
def kv_cache_update(trt: Any, network: Any) -> None:
    """Write updates of a cache as the converter does, in fp16 and in fp32."""
    rows = network.add_input("rows", trt.DataType.INT32, (1,))
    for dtype in (torch.float16, torch.float32):
        kind = trt_dtype_from_torch(trt, dtype)
        cache = network.add_input(f"cache_{kind.name}", kind, (1, 2, 16, 64))
        update = network.add_input(f"update_{kind.name}", kind, (1, 2, 1, 64))
        layer = network.add_kv_cache_update(cache, update, rows, trt.KVCacheMode.LINEAR)
        network.mark_output(layer.get_output(0))


# Quantization ------------------------------------------------------------------------------------------------------

# Memory of weights of any dtype and of their scales, which TensorRT reads until the network is built.
_BYTES = torch.ones(64 * 64 * 9, dtype=torch.uint8)
_SCALES, _SCALES_OF_BLOCKS = torch.ones(64), torch.ones(64 * 4, dtype=torch.float16)


@dataclasses.dataclass(frozen=True)
class _Quantized:
    """Network of one fp16 layer, whose inputs are dequantized from the `DataType` of the name `narrow`."""

    narrow: str
    layer: Callable[[_Quantized, Any, Any], Any]

    def __call__(self, trt: Any, network: Any) -> None:
        network.mark_output(self.layer(self, trt, network).get_output(0))

    def values(self, trt: Any, network: Any, *shape: int) -> Any:
        """Add an input, quantized and dequantized; a layer with 4-bit weights takes it as it is."""
        values = network.add_input(f"input{network.num_inputs}", trt.DataType.HALF, shape)
        if self.narrow == "INT4":
            return values
        scale = _constant(trt, network, "FLOAT", _SCALES, 1)
        quantized = network.add_quantize(values, scale, getattr(trt.DataType, self.narrow)).get_output(0)
        return network.add_dequantize(quantized, scale, trt.DataType.HALF).get_output(0)

    def weight(self, trt: Any, network: Any, axis: int, *shape: int) -> Any:
        """Add a constant, dequantized by channel along `axis`; one of 4 bits by blocks of 16 along the last axis."""
        narrow = _constant(trt, network, self.narrow, _BYTES, *shape)
        if self.narrow == "INT4":
            axis, scale = 1, _constant(trt, network, "HALF", _SCALES_OF_BLOCKS, 64, 4)
        else:
            scale = _constant(trt, network, "FLOAT", _SCALES, shape[axis])
        layer = network.add_dequantize(narrow, scale, trt.DataType.HALF)
        layer.axis = axis
        return layer.get_output(0)


def _constant(trt: Any, network: Any, dtype: str, memory: torch.Tensor, *shape: int) -> Any:
    weights = trt.Weights(getattr(trt.DataType, dtype), memory.data_ptr(), math.prod(shape))
    return network.add_constant(shape, weights).get_output(0)


def _convolution(of: _Quantized, trt: Any, network: Any) -> Any:
    values, weight = of.values(trt, network, 1, 64, 8, 8), of.weight(trt, network, 0, 64, 64, 3, 3)
    layer = network.add_convolution_nd(values, 64, (3, 3), trt.Weights(), trt.Weights())
    layer.set_input(1, weight)
    return layer


def _transposed_convolution(of: _Quantized, trt: Any, network: Any) -> Any:
    values, weight = of.values(trt, network, 1, 64, 8, 8), of.weight(trt, network, 1, 64, 64, 3, 3)
    layer = network.add_deconvolution_nd(values, 64, (3, 3), trt.Weights(), trt.Weights())
    layer.set_input(1, weight)
    return layer


def _linear(of: _Quantized, trt: Any, network: Any) -> Any:
    values, weight = of.values(trt, network, 16, 64), of.weight(trt, network, 0, 64, 64)
    return network.add_matrix_multiply(values, trt.MatrixOperation.NONE, weight, trt.MatrixOperation.TRANSPOSE)


def _attention(of: _Quantized, trt: Any, network: Any) -> Any:
    query, key, value = (of.values(trt, network, 1, 2, 16, 64) for _ in range(3))
    layer = network.add_attention(query, key, value, trt.AttentionNormalizationOp.SOFTMAX, False)
    layer.decomposable = True
    return layer


def _values(of: _Quantized, trt: Any, network: Any) -> Any:
    left, right = (of.values(trt, network, 1, 64, 8, 8) for _ in range(2))
    return network.add_elementwise(left, right, trt.ElementWiseOperation.SUM)


for _narrow in ("INT8", "FP8"):
    for _layer in (_convolution, _transposed_convolution, _linear, _attention, _values):
        PROBES[f"{_narrow.lower()}{_layer.__name__}"] = Probe("add_quantize", _Quantized(_narrow, _layer))
PROBES["int4_linear"] = Probe("add_dequantize", _Quantized("INT4", _linear))


# Answers -----------------------------------------------------------------------------------------------------------


def supports(capability: str, library: TensorRTLibrary, options: Options) -> Support:
    """Return whether `library` builds `capability` for ``options.targets``; the first call builds the probe.

    With ``engine="reference"`` nothing is built, so it is enough that TensorRT's API has the layer.
    Raises KeyError for a capability that has no probe.
    """
    found = PROBES[capability]
    if not hasattr(library.trt.INetworkDefinition, found.layer):
        return Support(False, f"{library} has no {found.layer}")
    if options.engine == "reference":
        return Support(True)
    key = _key(capability, library, options)
    if key not in _answers:
        _answers[key] = _cached_or_built(key, found, library, options)
        if not _answers[key].yes:
            warn_once(f"{library} does not build {capability}, so it is done without: {_answers[key].reason}")
    return _answers[key]


def _key(capability: str, library: TensorRTLibrary, options: Options) -> str:
    """Return the key of an answer in the cache: a digest of everything that the answer depends on."""
    targets = sorted(options.targets) or [current_target() or PORTABLE]
    source = source_digest()
    digest = hashlib.sha256(json.dumps([library.name, library.version, targets, source]).encode())
    return f"{capability}-{digest.hexdigest()[:32]}"


def _cached_or_built(key: str, probe: Probe, library: TensorRTLibrary, options: Options) -> Support:
    cache = EngineCache.from_options(options)
    if cache is None:
        return _answer(probe, library, options)[0]
    with cache.building(key):
        content = cache.get(key, KIND)  # its digest is checked, and this source wrote it: see `_key`
        if content is not None:
            return Support(**json.loads(content))
        answer, is_lasting = _answer(probe, library, options)
        if is_lasting:
            cache.put(key, json.dumps(dataclasses.asdict(answer)).encode(), KIND)
    return answer


def _answer(probe: Probe, library: TensorRTLibrary, options: Options) -> tuple[Support, bool]:
    """Return TensorRT's answer, and whether it would be the same another time."""
    log = library.new_log()
    try:
        plan = _build(probe, library, options, log)
    except Exception as error:  # its bindings raise several kinds, and none may stop a compilation
        message = str(error) if isinstance(error, BridgeError) else f"{type(error).__name__}: {error}"
        return Support(False, message), False
    if plan is not None:
        return Support(True), True
    reason = "; ".join(log.errors) or "it gave no reason"
    return Support(False, reason), "memory" not in reason.lower()


def _build(probe: Probe, library: TensorRTLibrary, options: Options, log: ErrorLog) -> Any:
    builder = library.new_builder(log)
    network = library.new_network(builder)
    config = builder.create_builder_config()
    library.set_targets(config, options.targets)
    probe.write(library.trt, network)
    if log.errors:  # TensorRT would build the network without the layer or input that it refused
        return None
    return builder.build_serialized_network(network, config)
