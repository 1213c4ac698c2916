"""Products of few rows with a large constant matrix, as those of a token: their time is that of reading the matrix.

TensorRT-RTX has few blocks of threads read it; a sum in parts lets more of them read side by side. In us, on an H200
(TensorRT-RTX 1.6.1, fp16):

    matrix           1 row          4 rows         16 rows
    768 x 768        4.2            5.1 -> 3.8     5.3 -> 3.9
    3072 x 768       7.7 -> 5.2     10.7 -> 5.7    11.4 -> 6.6
    2048 x 2048      7.0            10.6 -> 5.6    10.8 -> 6.2
    2048 x 16384     25.3           23.2 -> 21.6   25.3 -> 22.9
    8192 x 2048      20.7 -> 17.8   23.3 -> 15.3   23.1 -> 14.8
    4096 x 14336     41.6           35.2 -> 35.3   36.9 -> 36.6

One row is multiplied by a kernel of its own, unless it stands twice: then its sum in parts is as fast as that of four
rows. Where tensor cores sum in fp16 it does not stand twice, as they round more than that kernel: over 8192 inputs the
results were 2.4e-3 from PyTorch's in place of 6e-5.
"""

from __future__ import annotations

import math

import torch

HALF_FLOATS = (torch.float16, torch.bfloat16)

PARTS = 4
MOST_ROWS = 16

# The kernel of one row gains where there are so many times more inputs than outputs.
INPUTS_OF_ONE_ROW = 2

LEAST_INPUTS = 512
LEAST_OUTPUTS = 512

# From so many outputs on there are blocks enough for each multiprocessor.
MANY_OUTPUTS = 2**15


def has_few_rows(ctx, left, matrix):
    """Return whether `left` has few rows for a large constant matrix of two dimensions."""
    if not isinstance(matrix, torch.Tensor) or matrix.dim() != 2 or isinstance(left, torch.Tensor):
        return False
    sizes = tuple(left.shape)
    if len(sizes) < 2 or -1 in sizes or matrix.dtype not in HALF_FLOATS or ctx.dtype(left) != matrix.dtype:
        return False
    rows, inputs, outputs = math.prod(sizes[:-1]), sizes[-1], matrix.numel() // sizes[-1]
    is_large = inputs >= LEAST_INPUTS and inputs % (8 * PARTS) == 0 and LEAST_OUTPUTS <= outputs < MANY_OUTPUTS
    if rows == 1 and not _stands_twice(ctx, left):
        return is_large and inputs >= INPUTS_OF_ONE_ROW * outputs
    return is_large and rows <= MOST_ROWS


def _stands_twice(ctx, left):
    """Return whether `left` is one row that is multiplied as two."""
    return math.prod(left.shape[:-1]) == 1 and ctx.dtype(left) == torch.float16 and not ctx.fp16_accumulation


def product_of_few_rows(ctx, left, matrix, is_transposed):
    """Multiply the last dimension of `left` with a matrix [inputs, outputs], or [outputs, inputs] if transposed."""
    *leading, inputs = tuple(left.shape)
    outputs, rows = matrix.numel() // inputs, math.prod(leading)
    if is_transposed:
        weights = matrix.reshape(outputs, PARTS, inputs // PARTS).transpose(0, 1)
    else:
        weights = matrix.reshape(PARTS, inputs // PARTS, outputs)
    stands_twice = _stands_twice(ctx, left)
    if stands_twice:
        rows = 2
        left = ctx.slice(ctx.reshape(left, [1, inputs]), [0, 0], [rows, inputs], [0, 1])
    by_part = ctx.permute(ctx.reshape(left, [rows, PARTS, inputs // PARTS]), [1, 0, 2])
    operation = "TRANSPOSE" if is_transposed else "NONE"
    sums = ctx.cast(ctx.product(by_part, ctx.constant(weights), operation), torch.float32)
    total = ctx.reduce("SUM", sums, [0], keep_dims=False)
    if stands_twice:
        total = ctx.slice(total, [0, 0], [1, outputs])
    return ctx.reshape(ctx.cast(total, ctx.dtype(left)), [*leading, outputs])
