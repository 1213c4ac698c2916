"""Attention as TensorRT's layer, which takes four dimensions: batch, heads, tokens, elements."""

from __future__ import annotations

from torchtrt_bridge.graph.shapes import is_symbolic
from torchtrt_bridge.graph.torch_internals import statically_known_true
from torchtrt_bridge.lower.converters.sizes import product


def fits_the_layer(shapes):
    """Return whether query, key and value of these fake shapes share a batch and have heads that pair.

    The sizes of their elements are known: the layer wants one for all, and kernels are chosen by it.
    """
    query = shapes[0]
    if {len(shape) for shape in shapes} != {len(query)} or any(is_symbolic(shape[-1]) for shape in shapes):
        return False
    if any(is_symbolic(shape[-3]) for shape in shapes if len(shape) > 2):
        leading = [shape[:-2] for shape in shapes]
    else:
        leading = [shape[:-3] for shape in shapes]
        heads, *shared = [shape[-3] if len(shape) > 2 else 1 for shape in shapes]
        if shared[0] != shared[1] or heads % shared[0]:
            return False
    return all(statically_known_true(a == b) for other in leading[1:] for a, b in zip(leading[0], other, strict=True))


def attention_layer(ctx, tensors, shapes, mask, is_causal):
    """Add an attention of query (scaled already), key and value, under a mask or a causal one, never both.

    TensorRT ignores a mask that is set beside `is_causal`.
    """
    rank = len(shapes[0])
    has_heads = rank > 2 and not any(is_symbolic(shape[-3]) for shape in shapes)
    folded = rank - 2 - has_heads  # how many dimensions make up the batch
    size = max(shapes[0][-1], shapes[2][-1])
    q, k, v = (_with_size(ctx, _in_four(ctx, tensor, folded), size) for tensor in tensors)
    layer = ctx.network.add_attention(q, k, v, ctx.trt.AttentionNormalizationOp.SOFTMAX, is_causal)
    layer.decomposable = True  # no kernel fuses float32
    if mask is not None:
        layer.mask = _full_keys(ctx, _mask_in_four(ctx, mask, tensors[0], folded), k)
    result = _with_size(ctx, layer.get_output(0), shapes[2][-1])
    return result if rank == 4 and has_heads else ctx.reshape(result, [*ctx.sizes(tensors[0])[:-1], shapes[2][-1]])


def _in_four(ctx, tensor, folded):
    """Reshape to four dimensions: the first `folded` ones become the batch; one head if there is none."""
    sizes = ctx.sizes(tensor)
    if len(sizes) == 4 and folded == 1:
        return tensor
    heads = sizes[folded:-2] or [1]
    return ctx.reshape(tensor, [product(ctx, sizes[:folded]), *heads, *sizes[-2:]])


def _mask_in_four(ctx, mask, query, folded):
    """Reshape the mask as the query is reshaped. Dimensions of 1 may stay, to be broadcast."""
    rank = len(query.shape)
    tensor = ctx.once("mask of attention layers", mask, lambda: ctx.tensor(mask, rank=rank), rank)
    if folded > 1 and any(size != 1 for size in tuple(tensor.shape)[:folded]):
        tensor = ctx.expand(tensor, [*ctx.sizes(query)[:folded], *[-1] * (rank - folded)])
    return _in_four(ctx, tensor, folded)


def _full_keys(ctx, mask, key):
    """Expand the mask to an element for each key: TensorRT broadcasts no last dimension."""
    return mask if mask.shape[-1] != 1 else ctx.expand(mask, [-1, -1, -1, ctx.size(key, 2)])


def _with_size(ctx, tensor, size):
    """Cut the last dimension or fill it up with zeros: TensorRT wants keys and values of one size."""
    if tensor.shape[-1] == size:
        return tensor
    return ctx.slice(tensor, [0] * 4, [*ctx.sizes(tensor)[:-1], size], mode="FILL")
