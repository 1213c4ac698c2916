"""Passes that bring a captured graph into the form that is lowered. None changes what the graph computes."""

from collections.abc import Sequence

from torch import fx

from torchtrt_bridge.graph.edit import code_regenerated_once
from torchtrt_bridge.options import Options
from torchtrt_bridge.passes.attention_masks import simplify_masks
from torchtrt_bridge.passes.batch_norm import fold_batch_norm
from torchtrt_bridge.passes.cleanup import drop_metadata_checks, unify_quantizers
from torchtrt_bridge.passes.complex_pairs import use_complex_pairs
from torchtrt_bridge.passes.constant_folding import fold_constants
from torchtrt_bridge.passes.created_tensors import create_on_gpu
from torchtrt_bridge.passes.drop_quantization import (
    drop_quantization,
    quantizes,
    without_quantization,
    without_rounding,
)
from torchtrt_bridge.passes.embedding_bags import reduce_equal_bags
from torchtrt_bridge.passes.float64 import narrow_float64
from torchtrt_bridge.passes.kv_caches import mark_kv_caches
from torchtrt_bridge.passes.packed_sequences import pad_sequences
from torchtrt_bridge.passes.precision import set_precision
from torchtrt_bridge.passes.returned_views import take_returned_views
from torchtrt_bridge.passes.transposes import drop_transposes

PASSES = (
    drop_metadata_checks,
    unify_quantizers,  # first: a quantized weight must not be folded to floats
    pad_sequences,  # before the first states are folded to constants
    reduce_equal_bags,  # before the offsets, which tell, are folded to a constant
    fold_constants,
    use_complex_pairs,  # on the constants, of which many were made of real ones
    narrow_float64,
    create_on_gpu,  # what is no constant, as those are computed where the model computes them
    fold_batch_norm,
    drop_transposes,
    simplify_masks,
    set_precision,
    fold_constants,
)


def normalize(
    module: fx.GraphModule, options: Options, outputs: int | None = None, mutations: Sequence[int] = ()
) -> fx.GraphModule:
    """Run all passes on `module`, in place, and return it.

    outputs: the number of results that the caller gets, before those that are written to inputs; None for all.
    mutations: the indices of those inputs, as in `CapturedGraph`.
    """
    mark_kv_caches(module, outputs, mutations)
    views = take_returned_views(module, outputs)
    with code_regenerated_once(module):
        for run_pass in PASSES:
            run_pass(module, options)
    if views is not None:
        views.append_to(module)
    return module


__all__ = ["PASSES", "drop_quantization", "normalize", "quantizes", "without_quantization", "without_rounding"]
