"""The reference against TensorRT itself, which computes integers on the CPU where shapes depend on them.

A fill layer whose dimensions are the tensor in question has a shape that TensorRT works out while the network
is written: so its values can be read without a GPU.
"""

import pytest
import torch

from tests.reference.network import Network

OFFSET = 50  # dimensions cannot be negative


def tensor(network, *values):
    return network.constant(torch.tensor(values))


def elementwise(name):
    def add(network):
        operation = getattr(network.trt.ElementWiseOperation, name)
        return network.net.add_elementwise(tensor(network, 7, -7, 7, -7), tensor(network, 2, 2, -2, -2), operation)

    return add


def unary(name):
    return lambda network: network.net.add_unary(tensor(network, -3, 0, 4), getattr(network.trt.UnaryOperation, name))


def reduction(name):
    def add(network):
        operation = getattr(network.trt.ReduceOperation, name)
        return network.net.add_reduce(network.constant(torch.tensor([[-3, -4, 1], [2, -5, 4]])), operation, 1, False)

    return add


def sampling(mode, start, stride):
    def add(network):
        layer = network.net.add_slice(tensor(network, 3, 4, 5), (start,), (8,), (stride,))
        layer.mode = getattr(network.trt.SampleMode, mode)
        return layer

    return add


def fill_with_zeros(network):
    layer = network.net.add_slice(tensor(network, 3, 4, 5), (-1,), (5,), (1,))
    layer.mode = network.trt.SampleMode.FILL
    return layer


def gather(network):
    return network.net.add_gather(tensor(network, 3, 4, 5), tensor(network, -1, 0), 0)


def one_hot(index):
    def add(network):
        scalars = [network.constant(torch.tensor(value, dtype=torch.int32)) for value in (index, 4)]
        return network.net.add_one_hot(scalars[0], tensor(network, 7, 9), scalars[1], 0)

    return add


def cast_rounded(network):
    halves = network.constant(torch.tensor([-2.5, 0.5, 1.5, 2.5]))
    rounded = network.net.add_unary(halves, network.trt.UnaryOperation.ROUND).get_output(0)
    return network.net.add_cast(rounded, network.trt.int64)


def cast(network):
    return network.net.add_cast(network.constant(torch.tensor([-1.7, 1.7, 2.5, -0.3])), network.trt.int64)


def linspace(network):
    layer = network.net.add_fill((4,), network.trt.FillOperation.LINSPACE, network.trt.int64)
    layer.alpha, layer.beta = 3, 9
    return layer


CASES = {
    **{name: elementwise(name) for name in ("SUM", "SUB", "PROD", "MAX", "MIN", "DIV", "FLOOR_DIV")},
    **{name: unary(name) for name in ("SIGN", "NEG", "ABS")},
    **{f"reduce {name}": reduction(name) for name in ("SUM", "AVG", "MAX", "MIN", "PROD")},
    **{f"{mode} up": sampling(mode, -4, 1) for mode in ("CLAMP", "WRAP", "REFLECT")},
    **{f"{mode} down": sampling(mode, 6, -2) for mode in ("CLAMP", "WRAP", "REFLECT")},
    "fill": fill_with_zeros,
    "negative gather": gather,
    "one hot": one_hot(2),
    "negative one hot": one_hot(-1),
    "cast": cast,
    "round": cast_rounded,
    "linspace": linspace,
}


@pytest.mark.parametrize("case", CASES)
def test_integers_like_tensorrt(case):
    network = Network()
    values = CASES[case](network).get_output(0)
    (count,) = values.shape
    offset = tensor(network, *[OFFSET] * count)
    dims = network.net.add_elementwise(values, offset, network.trt.ElementWiseOperation.SUM).get_output(0)
    fill = network.net.add_fill([1] * count, network.trt.FillOperation.LINSPACE, network.trt.float32)
    fill.set_input(0, dims)
    fill.set_input(1, network.constant(torch.tensor(0.0)))
    fill.set_input(2, network.constant(torch.zeros(count)))
    known = [dim - OFFSET for dim in fill.get_output(0).shape]
    (computed,) = network.interpreter(values)()
    assert computed.tolist() == known
