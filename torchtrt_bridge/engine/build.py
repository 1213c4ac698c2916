"""Build of an engine: from a TensorRT network to its bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from torchtrt_bridge.errors import BuildError
from torchtrt_bridge.lower.network import Network
from torchtrt_bridge.options import Options
from torchtrt_bridge.trt.inspector import outputs_taken_for_inputs
from torchtrt_bridge.trt.library import TensorRTLibrary

# Called with the fraction that is done; returns False to cancel the build.
OnProgress = Callable[[float], bool]

# Larger engines, in bytes, pass through a temporary file: TensorRT holds a copy of the weights during the build.
MOST_IN_MEMORY = 16 * 2**20


def engine_from_network(
    network: Network, library: TensorRTLibrary, options: Options, on_progress: OnProgress | None = None
) -> bytes:
    """Build `network` for `options.targets`, and return the bytes of the engine.

    on_progress: called with the fraction that is done.
    Raises BuildError with TensorRT's own messages.
    """
    trt = library.trt
    config = network.builder.create_builder_config()
    config.builder_optimization_level = options.optimization_level
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    (config.set_flag if options.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    library.set_targets(config, options.targets)
    _add_profile(network, config)
    if on_progress is not None:
        config.progress_monitor = library.progress_monitor(on_progress)
    plan = _plan(network, config, library)
    missing = [place for place in outputs_taken_for_inputs(plan) if place not in network.in_place]
    if missing:
        network.copy_outputs(missing)
        plan = _plan(network, config, library)
    return plan


def _plan(network: Network, config: Any, library: TensorRTLibrary) -> bytes:
    """Return the bytes of the engine; BuildError with TensorRT's own messages."""
    network.log.clear()
    with tempfile.SpooledTemporaryFile(max_size=MOST_IN_MEMORY) as file:
        writer = library.stream_writer(file.write)
        if network.builder.build_serialized_network_to_stream(network.definition, config, writer):
            file.seek(0)
            return file.read()
    plan = None
    if writer.has_failed:
        network.log.clear()  # the disk is full; there may be enough memory
        plan = network.builder.build_serialized_network(network.definition, config)
    if plan is None:
        errors = "; ".join(network.log.errors) or "it gave no reason"
        raise BuildError(f"{library} could not build the engine: {errors}")
    return bytes(plan)


def _add_profile(network: Network, config: Any) -> None:
    """Add one optimization profile with the range of every dynamic input."""
    dynamic = [spec for spec in network.inputs if any(low != high for low, high in spec.ranges)]
    if not dynamic:
        return
    profile = network.builder.create_optimization_profile()
    for spec in dynamic:
        low, high = zip(*spec.ranges, strict=True)
        profile.set_shape(spec.name, low, spec.example_in_range, high)
    if not profile:
        ranges = ", ".join(f"{s.name}: {s}" for s in dynamic)
        raise BuildError(f"TensorRT refuses the ranges {ranges}. Narrow them (dynamic_shapes, max_dynamic_size).")
    config.add_optimization_profile(profile)
