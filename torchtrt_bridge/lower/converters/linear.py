"""Products of matrices and vectors."""

from __future__ import annotations

import torch

from torchtrt_bridge.lower.converters.few_rows import HALF_FLOATS, has_few_rows, product_of_few_rows
from torchtrt_bridge.lower.converters.sizes import known_elements
from torchtrt_bridge.lower.registry import FLOATS, MAX_RANK, NUMBERS, converter

aten = torch.ops.aten


@converter(aten.linear.default, dtypes=FLOATS, precision="half")
def linear(ctx, input, weight, bias=None):
    """linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor"""
    outputs = weight.shape[0]
    missing = _missing_outputs(weight, bias)
    weight, bias = (_with_zeros(value, missing) for value in (weight, bias))
    # The weight of one output has one dimension.
    result = _product(ctx, input, weight, "TRANSPOSE" if len(weight.shape) == 2 else "VECTOR")
    if bias is not None:
        result = ctx.elementwise("SUM", result, bias)
    if missing:
        result = ctx.slice(result, [0] * len(result.shape), [*ctx.sizes(result)[:-1], outputs])
    return result


# A layer of at least so many outputs gains by their alignment.
MANY_OUTPUTS = 1024


def _missing_outputs(weight, bias):
    """Return the number of outputs that a large layer lacks to a multiple of eight, in which tensor cores work.

    On an H100, TensorRT-RTX 1.6 took 1.48 ms for 4096 rows of 768 by a vocabulary of 50257, and 0.94 for 50264.
    """
    if not isinstance(weight, torch.Tensor) or not (bias is None or isinstance(bias, torch.Tensor)):
        return 0
    is_wide = weight.dim() == 2 and weight.shape[0] >= MANY_OUTPUTS and weight.dtype in HALF_FLOATS
    return -weight.shape[0] % 8 if is_wide else 0


def _with_zeros(value, rows):
    """Add rows of zeros to a constant weight or bias."""
    return torch.cat([value, value.new_zeros(rows, *value.shape[1:])]) if rows and value is not None else value


# The most products of integers of known sizes: TensorRT multiplies matrices of floats only.
MOST_PRODUCTS = 2**22


def too_many_products(self, other):
    """Products of integers stand along a new dimension before they are added up."""
    if self.is_floating_point():
        return None
    pair = _facing(self.shape, other.shape)
    if max(map(len, pair)) > MAX_RANK:
        return f"a product of integers in {MAX_RANK} dimensions"
    count = known_elements(*pair)
    return f"{count} products of integers, at most {MOST_PRODUCTS}" if count > MOST_PRODUCTS else None


def _facing(left, right):
    """Return the shapes that broadcast to all products of two matrices, stacks of them, or vectors."""
    if len(right) == 1:
        return tuple(left), tuple(right)
    return (*left, 1), tuple(right) if len(left) == 1 else (*right[:-2], 1, *right[-2:])


@converter(aten.matmul.default, why_not=too_many_products, dtypes=NUMBERS, precision="half")
def matmul(ctx, self, other):
    """matmul(Tensor self, Tensor other) -> Tensor"""
    return _product(ctx, self, other, "VECTOR" if len(other.shape) == 1 else "NONE")


def too_many_products_of_matrices(self, mat2):
    return too_many_products(self, mat2)


@converter(aten.mm.default, why_not=too_many_products_of_matrices, dtypes=NUMBERS, precision="half")
def mm(ctx, self, mat2):
    """mm(Tensor self, Tensor mat2) -> Tensor"""
    return _product(ctx, self, mat2)


@converter(aten.bmm.default, why_not=too_many_products_of_matrices, dtypes=NUMBERS, precision="half")
def bmm(ctx, self, mat2):
    """bmm(Tensor self, Tensor mat2) -> Tensor"""
    return _product(ctx, self, mat2)


@converter(aten.mv.default, dtypes=FLOATS)
def mv(ctx, self, vec):
    """mv(Tensor self, Tensor vec) -> Tensor"""
    return _product(ctx, self, vec, "VECTOR")


@converter(aten.dot.default, dtypes=FLOATS)
def dot(ctx, self, tensor):
    """dot(Tensor self, Tensor tensor) -> Tensor"""
    return _product(ctx, self, tensor, "VECTOR")


def too_many_products_to_add(self, mat1, mat2, **rest):
    return too_many_products(mat1, mat2)


@converter(aten.addmm.default, why_not=too_many_products_to_add, dtypes=NUMBERS, precision="half")
def addmm(ctx, self, mat1, mat2, beta=1, alpha=1):
    """addmm(Tensor self, Tensor mat1, Tensor mat2, *, Scalar beta=1, Scalar alpha=1) -> Tensor"""
    return _weighted_sum(ctx, self, _product(ctx, mat1, mat2), beta, alpha)


@converter(aten.baddbmm.default, dtypes=FLOATS, precision="half")
def baddbmm(ctx, self, batch1, batch2, beta=1, alpha=1):
    """baddbmm(Tensor self, Tensor batch1, Tensor batch2, *, Scalar beta=1, Scalar alpha=1) -> Tensor"""
    return _weighted_sum(ctx, self, _product(ctx, batch1, batch2), beta, alpha)


def _product(ctx, left, right, right_operation="NONE"):
    """Multiply over the last dimension of `left`; leading dimensions broadcast."""
    if not ctx.dtype(left).is_floating_point:
        return _integer_product(ctx, ctx.tensor(left), ctx.tensor(right))
    if right_operation != "VECTOR" and has_few_rows(ctx, left, right):
        return product_of_few_rows(ctx, left, right, is_transposed=right_operation == "TRANSPOSE")
    left_operation = "VECTOR" if len(left.shape) == 1 else "NONE"
    own = [1 if operation == "VECTOR" else 2 for operation in (left_operation, right_operation)]
    batch = max(len(left.shape) - own[0], len(right.shape) - own[1])
    a, b = (with_rank(ctx, v, batch + n) for v, n in zip((left, right), own, strict=True))
    return ctx.product(a, b, right_operation, left_operation)


def _integer_product(ctx, left, right):
    """Multiply each row with each column, element by element, and add up the products."""
    if len(right.shape) == 1:
        return ctx.reduce("SUM", ctx.elementwise("PROD", left, right), [-1], keep_dims=False)
    if len(left.shape) > 1:
        right = ctx.unsqueeze(right, [len(right.shape) - 2])
    products = ctx.elementwise("PROD", ctx.unsqueeze(left, [len(left.shape)]), right)
    return ctx.reduce("SUM", products, [-2], keep_dims=False)


def with_rank(ctx, value, rank):
    """Return a tensor with leading ones up to `rank` dimensions; a constant gets them without a layer."""
    if isinstance(value, torch.Tensor):
        value = value.reshape((1,) * (rank - value.dim()) + tuple(value.shape))
    return ctx.tensor(value, rank=rank)


def _weighted_sum(ctx, summand, product, beta, alpha):
    """Compute beta * summand + alpha * product; a summand times 0 adds nothing, not even its NaN."""
    dtype = ctx.dtype(product)
    if alpha != 1:
        product = ctx.elementwise("PROD", product, alpha, dtype)
    if beta == 0:
        return product
    if beta != 1:
        summand = ctx.elementwise("PROD", summand, beta, dtype)
    return ctx.elementwise("SUM", product, summand, dtype)


@converter(aten.bilinear.default, dtypes=FLOATS)
def bilinear(ctx, input1, input2, weight, bias=None):
    """bilinear(Tensor input1, Tensor input2, Tensor weight, Tensor? bias=None) -> Tensor"""
    outputs, first, second = weight.shape
    if isinstance(weight, torch.Tensor):
        flat = weight.permute(1, 0, 2).reshape(first, outputs * second)
    else:
        flat = ctx.reshape(ctx.permute(weight, [1, 0, 2]), [first, outputs * second])
    product = _product(ctx, ctx.tensor(input1), flat)
    matrices = ctx.reshape(product, [*ctx.sizes(product)[:-1], outputs, second])
    result = _product(ctx, matrices, ctx.tensor(input2), "VECTOR")
    return result if bias is None else ctx.elementwise("SUM", result, bias)


def multiply_along(ctx, x, dim, matrix):
    """Multiply a constant matrix with every vector along one dimension of `x`."""
    rank = len(x.shape)
    dim %= rank
    weights = ctx.constant(matrix.reshape((1,) * (rank - 2) + tuple(matrix.shape)), ctx.dtype(x))
    if dim == rank - 1:
        return ctx.product(x, weights, "TRANSPOSE")
    order = [*range(dim), *range(dim + 1, rank - 1), dim, rank - 1]
    x = x if dim == rank - 2 else ctx.permute(x, order)
    product = ctx.product(weights, x)
    return product if dim == rank - 2 else ctx.permute(product, [order.index(axis) for axis in range(rank)])
