"""Recurrent layers, as loops over the steps of a sequence: a network has as many layers for any length.

The length is that of the export. With one known only at run time TensorRT-RTX says that the engine "is not stream
capturable", and it is in a CUDA graph that kernels keep their order (see runtime/launch_order.py).

The products of the inputs are computed for all steps at once, in front of the loop, which has only those of the hidden
state. One loop computes both directions, as a batch of two, and reads the inputs of the second one in reverse.

Of padded sequences with lengths, a step beyond the end of a sequence leaves its states as they are. In reverse these
are the first steps, so that each sequence begins at its own end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from torchtrt_bridge.graph.packed import own
from torchtrt_bridge.graph.recurrent import is_random
from torchtrt_bridge.graph.torch_internals import schema_of
from torchtrt_bridge.lower.converters.arithmetic import widened
from torchtrt_bridge.lower.converters.linear import with_rank
from torchtrt_bridge.lower.loop import Loop
from torchtrt_bridge.lower.registry import FLOATS, converter


@dataclasses.dataclass(frozen=True)
class Cell:
    """What a step computes from the products of its input and of the hidden state, each the gates side by side.

    gates: how many there are.
    compute: returns the new states, the hidden one first.
    adds_hidden_bias: whether the bias of the hidden state is added to its product, and not in front of the loop.
    """

    gates: int
    compute: Callable[..., Any]
    adds_hidden_bias: bool = False


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of one layer in one direction; None for those that it lacks."""

    input: Any
    hidden: Any
    input_bias: Any = None
    hidden_bias: Any = None
    projection: Any = None


# The steps ---------------------------------------------------------------------------------------------------------


def _lstm_step(ctx, inputs, products, states, split):
    """Compute the gates in PyTorch's order: input, forget, cell, output."""
    takes, keeps, new, gives = split(ctx.elementwise("SUM", inputs, products))
    takes, keeps, gives = (ctx.activation("SIGMOID", gate) for gate in (takes, keeps, gives))
    taken = ctx.elementwise("PROD", takes, ctx.activation("TANH", new))
    cell = ctx.elementwise("SUM", ctx.elementwise("PROD", keeps, states[1]), taken)
    return [ctx.elementwise("PROD", gives, ctx.activation("TANH", cell)), cell]


def _gru_step(ctx, inputs, products, states, split):
    """Compute the gates in PyTorch's order: reset, update, new."""
    of_input, of_hidden = split(inputs), split(products)
    reset, update = (
        ctx.activation("SIGMOID", ctx.elementwise("SUM", *pair))
        for pair in zip(of_input[:2], of_hidden[:2], strict=True)
    )
    kept = ctx.elementwise("PROD", reset, of_hidden[2])
    new = ctx.activation("TANH", ctx.elementwise("SUM", of_input[2], kept))
    change = ctx.elementwise("SUB", states[0], new)
    return [ctx.elementwise("SUM", ctx.elementwise("PROD", change, update), new)]


def _plain_step(activation):
    def step(ctx, inputs, products, states, split):
        return [ctx.activation(activation, ctx.elementwise("SUM", inputs, products))]

    return step


LSTM = Cell(4, _lstm_step)
GRU = Cell(3, _gru_step, adds_hidden_bias=True)
RNN_TANH, RNN_RELU = (Cell(1, _plain_step(activation)) for activation in ("TANH", "RELU"))


# The operators -----------------------------------------------------------------------------------------------------

# TensorRT-RTX 1.7 builds a loop of 6 units over one sequence without an end, and one of 7 in no time.
LEAST_UNITS_OF_ONE_SEQUENCE = 8

OF_ANY_LENGTH = "the length of its sequences is known only at run time, and no CUDA graph holds a loop of such a length"


def not_one_loop(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first):
    """Engines draw no random numbers, the length of a loop is fixed, and one sequence takes a layer of some size."""
    if is_random({"num_layers": num_layers, "dropout": dropout, "train": train}):
        return f"it is in training mode, where it drops values between its layers (dropout={dropout:g})"
    batch, length = input.shape[:2] if batch_first else input.shape[:2][::-1]
    if not isinstance(length, int):
        return OF_ANY_LENGTH
    units = (hx[-1] if isinstance(hx, (list, tuple)) else hx).shape[2]
    if isinstance(batch, int) and batch == 1 and units < LEAST_UNITS_OF_ONE_SEQUENCE:
        return f"it has {units} units for one sequence, and TensorRT does not end building such a loop"
    return None


@converter(own.lstm.default, why_not=not_one_loop, dtypes=FLOATS, precision="half")
def lstm(ctx, input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first):
    """lstm(Tensor input, Tensor[] hx, Tensor[] params, bool has_biases, int num_layers, float dropout, bool train,
    bool bidirectional, bool batch_first) -> (Tensor, Tensor, Tensor)"""
    layers = _layers(params, has_biases, num_layers, bidirectional)
    return _recurrent(ctx, LSTM, input, hx, layers, batch_first)


@converter(own.gru.default, why_not=not_one_loop, dtypes=FLOATS, precision="half")
def gru(ctx, input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first):
    """gru(Tensor input, Tensor hx, Tensor[] params, bool has_biases, int num_layers, float dropout, bool train,
    bool bidirectional, bool batch_first) -> (Tensor, Tensor)"""
    layers = _layers(params, has_biases, num_layers, bidirectional)
    return _recurrent(ctx, GRU, input, [hx], layers, batch_first)


def _register(op, cell):
    @converter(op, why_not=not_one_loop, dtypes=FLOATS, precision="half")
    def lower(ctx, input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first):
        layers = _layers(params, has_biases, num_layers, bidirectional)
        return _recurrent(ctx, cell, input, [hx], layers, batch_first)

    lower.__doc__ = str(schema_of(op))


_register(own.rnn_tanh.default, RNN_TANH)
_register(own.rnn_relu.default, RNN_RELU)


# Padded sequences, with the length first ---------------------------------------------------------------------------


def not_one_loop_of_lengths(input, lengths, hx, params, has_biases, num_layers, dropout, train, bidirectional):
    """As for sequences of one length."""
    return not_one_loop(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first=False)


def _register_padded(op, cell):
    @converter(op, why_not=not_one_loop_of_lengths, dtypes=(*FLOATS, torch.int64), precision="half")
    def lower(ctx, input, lengths, hx, params, has_biases, num_layers, dropout, train, bidirectional):
        layers = _layers(params, has_biases, num_layers, bidirectional)
        states = hx if isinstance(hx, (list, tuple)) else [hx]
        return _recurrent(ctx, cell, input, states, layers, batch_first=False, lengths=lengths)

    lower.__doc__ = str(schema_of(op))


for _op, _cell in (
    (own.padded_lstm.default, LSTM),
    (own.padded_gru.default, GRU),
    (own.padded_rnn_tanh.default, RNN_TANH),
    (own.padded_rnn_relu.default, RNN_RELU),
):
    _register_padded(_op, _cell)


# The layers --------------------------------------------------------------------------------------------------------


def _layers(params, has_biases, num_layers, bidirectional):
    """Return the weights of each layer, a list of one for each direction."""
    directions = 2 if bidirectional else 1
    count = len(params) // (num_layers * directions)
    named = ["input", "hidden", *(["input_bias", "hidden_bias"] if has_biases else []), "projection"][:count]
    groups = [params[start : start + count] for start in range(0, len(params), count)]
    weights = [Weights(**dict(zip(named, group, strict=True))) for group in groups]
    return [weights[start : start + directions] for start in range(0, len(weights), directions)]


def _recurrent(ctx, cell, input, states, layers, batch_first, lengths=None):
    """Add all layers; return the output of the last one, and the last states of all.

    lengths: those of the sequences, beyond which the output is zero; None if each is as long as `input`.
    """
    output = ctx.tensor(input)
    output = ctx.permute(output, [1, 0, 2]) if batch_first else output
    within = None if lengths is None else _within(ctx, ctx.sizes(output)[0], lengths)
    last = []
    for index, weights in enumerate(layers):
        first = index * len(weights)
        initial = [_rows(ctx, state, first, len(weights)) for state in states]
        output, states_of_layer = _layer(ctx, cell, output, initial, weights, within)
        last.append(states_of_layer)
    if within is not None:
        output = ctx.select(ctx.unsqueeze(within, [2]), output, 0.0, ctx.dtype(output))
    output = ctx.permute(output, [1, 0, 2]) if batch_first else output
    return output, *(_joined(ctx, list(of_layers), 0) for of_layers in zip(*last, strict=True))


def _within(ctx, length, lengths):
    """Return whether each step of each sequence is before its end, of shape (length, batch)."""
    steps = torch.arange(length, dtype=ctx.dtype(lengths)).reshape(length, 1)
    return ctx.elementwise("LESS", steps, ctx.unsqueeze(ctx.tensor(lengths), [0]))


def _layer(ctx, cell, input, initial, weights, within):
    """Add one layer; return its output, of shape (length, batch, features of all directions), and its last states.

    within: whether a step computes new states of a sequence, of shape (length, batch); None if each does.
    States are kept in fp32, where their sums over all steps do not lose what half precision would round off.
    """
    dtype, (length, batch, _) = ctx.dtype(input), ctx.sizes(input)
    wide = widened(dtype)
    shape = [len(weights), batch, weights[0].hidden.shape[0] // cell.gates]
    hidden, projection, bias = (_of_directions(ctx, weights, name) for name in ("hidden", "projection", "hidden_bias"))
    bias = None if bias is None or not cell.adds_hidden_bias else ctx.unsqueeze(ctx.tensor(bias, wide), [1])

    def split(gates):
        return [ctx.slice(gates, [0, 0, index * shape[2]], shape) for index in range(cell.gates)]

    products = _input_products(ctx, cell, input, weights)
    initial = [ctx.tensor(state, wide) for state in initial]
    loop = Loop(ctx, length)
    inputs = ctx.cast(loop.each(products), wide)
    computes = None if within is None else loop.each(_of_each_direction(ctx, within, len(weights)))
    kept = [loop.state(state) for state in initial]
    states = [state.get_output(0) for state in kept]
    product = ctx.cast(_product(ctx, ctx.cast(states[0], dtype), hidden), wide)
    product = product if bias is None else ctx.elementwise("SUM", product, bias)
    new = cell.compute(ctx, inputs, product, states, split)
    output = ctx.cast(new[0], dtype)
    if projection is not None:
        output = _product(ctx, output, projection)
        new[0] = ctx.cast(output, wide)
    if computes is not None:
        new = [ctx.select(computes, value, old, wide) for value, old in zip(new, states, strict=True)]
    for state, value in zip(kept, new, strict=True):
        state.set_input(1, value)
    last = [ctx.cast(loop.last(state), dtype) for state in kept]
    return _side_by_side(ctx, loop.collected(output), len(weights)), last


def _input_products(ctx, cell, input, weights):
    """Return the products of all inputs, with the biases, of shape (length, directions, batch, gates).

    Those of the second direction come in reverse order.
    """
    biases = [each.input_bias for each in weights if each.input_bias is not None]
    if biases and not cell.adds_hidden_bias:
        biases = [_sum(ctx, each.input_bias, each.hidden_bias) for each in weights]
    products = _product(ctx, input, _joined(ctx, [each.input for each in weights], 0))
    if biases:
        products = ctx.elementwise("SUM", products, _joined(ctx, biases, 0))
    length, batch, count = ctx.sizes(products)
    shape = [length, batch, count // len(weights)]
    parts = [ctx.slice(products, [0, 0, 0], shape)] if len(weights) > 1 else [products]
    if len(weights) > 1:
        parts.append(ctx.slice(products, [length - 1, 0, shape[2]], shape, [-1, 1, 1]))
    return _joined(ctx, [ctx.unsqueeze(part, [1]) for part in parts], 1)


def _of_each_direction(ctx, within, directions):
    """Return `within` of shape (length, directions, batch, 1), in reverse order for the second direction."""
    forwards = ctx.unsqueeze(within, [1, 3])
    if directions == 1:
        return forwards
    length, *shape = ctx.sizes(forwards)
    backwards = ctx.slice(forwards, [length - 1, 0, 0, 0], [length, *shape], [-1, 1, 1, 1])
    return _joined(ctx, [forwards, backwards], 1)


def _side_by_side(ctx, outputs, directions):
    """Return outputs of shape (length, directions, batch, features) in the order of time, without the directions."""
    length, _, *shape = ctx.sizes(outputs)
    parts = [ctx.slice(outputs, [0, 0, 0, 0], [length, 1, *shape])] if directions > 1 else [outputs]
    if directions > 1:
        parts.append(ctx.slice(outputs, [length - 1, 1, 0, 0], [length, 1, *shape], [-1, 1, 1, 1]))
    return _joined(ctx, [ctx.squeeze(part, [1]) for part in parts], 2)


# Constants and tensors ---------------------------------------------------------------------------------------------


def _product(ctx, left, weight):
    """Multiply rows by a weight of shape (..., outputs, inputs); `left` has three dimensions."""
    return ctx.product(left, with_rank(ctx, weight, 3), "TRANSPOSE")


def _of_directions(ctx, weights, name):
    """Return a weight of all directions along a new first dimension; None if the layer lacks it."""
    values = [getattr(each, name) for each in weights]
    if values[0] is None:
        return None
    if _are_constants(values):
        return torch.stack(values)
    return _joined(ctx, [ctx.unsqueeze(ctx.tensor(value), [0]) for value in values], 0)


def _rows(ctx, value, start, count):
    """Return `count` of the entries along the first of three dimensions."""
    if value.shape[0] == count:
        return value
    if isinstance(value, torch.Tensor):
        return value[start : start + count]
    return ctx.slice(value, [start, 0, 0], [count, *ctx.sizes(value)[1:]])


def _joined(ctx, values, dim):
    if len(values) == 1:
        return values[0]
    if _are_constants(values):
        return torch.cat(values, dim)
    layer = ctx.network.add_concatenation([ctx.tensor(value) for value in values])
    layer.axis = dim
    return layer.get_output(0)


def _sum(ctx, left, right):
    if _are_constants([left, right]):
        return (left.float() + right.float()).to(left.dtype)
    return ctx.elementwise("SUM", left, right)


def _are_constants(values):
    return all(isinstance(value, torch.Tensor) for value in values)
