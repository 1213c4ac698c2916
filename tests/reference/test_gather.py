import pytest
import torch

from tests.reference.network import Network, only_output
from torchtrt_bridge.errors import LoweringError

DATA = torch.arange(24.0).reshape(2, 3, 4)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("index", [torch.tensor(1), torch.tensor([1, 0]), torch.tensor([[1, 1], [0, 1]])])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_gather(network, axis, index, dtype):
    layer = network.net.add_gather(network.input(DATA), network.input(index.to(dtype)), axis)
    expected = DATA[(slice(None),) * axis + (index,)]
    assert torch.equal(only_output(network, layer), expected)


@pytest.mark.parametrize("mode", ["DEFAULT", "ELEMENT", "ND"])
def test_gather_outside_the_data_raises(network, mode):
    index = torch.tensor([[0], [3]]) if mode == "ND" else torch.tensor([0, 3])
    kind = getattr(network.trt.GatherMode, mode)
    layer = network.net.add_gather_v2(network.input(torch.tensor([5.0, 6.0])), network.input(index), kind)
    with pytest.raises(LoweringError, match="indices outside the data: they range from 0 to 3"):
        only_output(network, layer)


def test_gather_refuses_what_tensorrt_leaves_undefined(network):
    x = network.input(torch.tensor([5.0, 6.0]), dynamic=[0])
    interpreter = network.interpreter(network.net.add_gather(x, network.constant(torch.tensor([-1])), 0).get_output(0))
    with pytest.raises(LoweringError, match="negative index into a dynamic dimension"):
        interpreter(torch.tensor([5.0, 6.0]))


def test_gather_row_by_row(network):
    """With one elementwise dimension, row b of the index picks from row b of the data."""
    index = torch.tensor([[2, 0], [1, 1]])
    layer = network.net.add_gather(network.input(DATA), network.input(index), 1)
    layer.num_elementwise_dims = 1
    assert torch.equal(only_output(network, layer), torch.stack([DATA[0][index[0]], DATA[1][index[1]]]))


@pytest.mark.parametrize("axis", [0, 2])
def test_gather_elements(network, axis):
    index = torch.randint(DATA.shape[axis], (2, 3, 4))
    layer = network.net.add_gather_v2(network.input(DATA), network.input(index), network.trt.GatherMode.ELEMENT)
    layer.axis = axis
    assert torch.equal(only_output(network, layer), DATA.gather(axis, index))


def test_gather_nd(network):
    index = torch.tensor([[0, 1], [1, 2]])
    layer = network.net.add_gather_v2(network.input(DATA), network.input(index), network.trt.GatherMode.ND)
    assert torch.equal(only_output(network, layer), torch.stack([DATA[0, 1], DATA[1, 2]]))


def test_gather_nd_row_by_row(network):
    index = torch.tensor([[[1]], [[2]]])
    layer = network.net.add_gather_v2(network.input(DATA), network.input(index), network.trt.GatherMode.ND)
    layer.num_elementwise_dims = 1
    assert torch.equal(only_output(network, layer), torch.stack([DATA[0, 1], DATA[1, 2]]).unsqueeze(1))


def test_scatter_elements(network):
    data, index, updates = torch.zeros(3, 3), torch.tensor([[1, 0, 2]]), torch.tensor([[1.0, 2.0, 3.0]])
    layer = network.net.add_scatter(
        network.input(data), network.input(index), network.input(updates), network.trt.ScatterMode.ELEMENT
    )
    layer.axis = 0
    assert only_output(network, layer).tolist() == [[0, 2, 0], [1, 0, 0], [0, 0, 3]]


def test_scatter_nd(network):
    index, updates = torch.tensor([[1], [0]]), torch.stack([-DATA[0], -DATA[1]])
    layer = network.net.add_scatter(
        network.input(DATA), network.input(index), network.input(updates), network.trt.ScatterMode.ND
    )
    assert torch.equal(only_output(network, layer), -DATA.flip(0))


@pytest.mark.parametrize(("axis", "expected"), [(-1, [[7, 7, 9], [9, 7, 7]]), (0, [[7, 9], [7, 7], [9, 7]])])
def test_one_hot(network, axis, expected):
    values, depth = (
        network.constant(torch.tensor([7.0, 9.0])),
        network.constant(torch.tensor(3, dtype=torch.int32)),
    )
    layer = network.net.add_one_hot(network.input(torch.tensor([2, 0], dtype=torch.int32)), values, depth, axis)
    assert only_output(network, layer).tolist() == expected
