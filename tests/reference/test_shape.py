import pytest
import torch

from tests.reference.network import Network, only_output
from torchtrt_bridge.errors import LoweringError


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


X = torch.arange(24.0).reshape(2, 3, 4)


def test_shape_of_a_dynamic_tensor(network):
    layer = network.net.add_shape(network.input(X, dynamic=[0, 2]))
    result = only_output(network, layer)
    assert result.dtype == torch.int64
    assert result.tolist() == [2, 3, 4]


@pytest.mark.parametrize(
    ("dims", "expected"),
    [((6, 4), (6, 4)), ((0, -1), (2, 12)), ((-1,), (24,)), ((0, 0, 2, 2), (2, 3, 2, 2))],
)
@pytest.mark.parametrize("from_tensor", [True, False])
def test_reshape(network, dims, expected, from_tensor):
    layer = network.net.add_shuffle(network.input(X))
    if from_tensor:
        layer.set_input(1, network.constant(torch.tensor(dims)))
    else:
        layer.reshape_dims = dims
    assert torch.equal(only_output(network, layer), X.reshape(expected))


def test_zero_may_mean_an_empty_dimension(network):
    layer = network.net.add_shuffle(network.input(torch.zeros(2, 0)))
    layer.reshape_dims, layer.zero_is_placeholder = (0, 5), False
    assert only_output(network, layer).shape == (0, 5)


def test_shuffle_transposes_before_and_after(network):
    layer = network.net.add_shuffle(network.input(X))
    layer.first_transpose, layer.reshape_dims, layer.second_transpose = (2, 0, 1), (0, 6), (1, 0)
    assert torch.equal(only_output(network, layer), X.permute(2, 0, 1).reshape(4, 6).T)


def test_shuffle_to_a_scalar(network):
    layer = network.net.add_shuffle(network.input(torch.ones(1, 1)))
    layer.reshape_dims = ()
    assert only_output(network, layer).shape == ()


@pytest.mark.parametrize(
    ("start", "size", "stride", "expected"),
    [
        ((0, 1, 0), (2, 2, 4), (1, 1, 1), X[:, 1:]),
        ((0, 0, 1), (2, 3, 2), (1, 1, 2), X[:, :, 1::2]),
        ((0, 0, 3), (2, 3, 4), (1, 1, -1), X.flip(2)),
        ((1, 0, 0), (3, 3, 4), (0, 1, 1), X[1].expand(3, 3, 4)),
        ((0, 0, 0), (2, 0, 4), (1, 1, 1), X[:, :0]),
    ],
)
@pytest.mark.parametrize("from_tensor", [True, False])
def test_slice(network, start, size, stride, expected, from_tensor):
    layer = network.net.add_slice(network.input(X), start, size, stride)
    if from_tensor:
        for index, value in enumerate((start, size, stride)):
            layer.set_input(1 + index, network.constant(torch.tensor(value)))
    assert torch.equal(only_output(network, layer), expected)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("CLAMP", [0, 0, 0, 1, 2, 2, 2, 2]),
        ("WRAP", [1, 2, 0, 1, 2, 0, 1, 2]),
        ("REFLECT", [2, 1, 0, 1, 2, 1, 0, 1]),
        ("FILL", [9, 9, 0, 1, 2, 9, 9, 9]),
    ],
)
def test_slice_beyond_the_ends(network, mode, expected):
    layer = network.net.add_slice(network.input(torch.tensor([0.0, 1.0, 2.0])), (-2,), (8,), (1,))
    layer.mode = getattr(network.trt.SampleMode, mode)
    if mode == "FILL":
        layer.set_input(4, network.constant(torch.tensor(9.0)))
    assert only_output(network, layer).tolist() == expected


def test_slice_fills_around_two_dimensions(network):
    x = torch.ones(2, 2)
    layer = network.net.add_slice(network.input(x), (-1, -1), (4, 4), (1, 1))
    layer.mode = network.trt.SampleMode.FILL
    layer.set_input(4, network.constant(torch.tensor(5.0)))
    assert torch.equal(only_output(network, layer), torch.nn.functional.pad(x, (1, 1, 1, 1), value=5))


def test_slice_with_axes(network):
    layer = network.net.add_slice(network.input(X), (1,), (2,), (1,))
    layer.axes = (1,)
    assert torch.equal(only_output(network, layer), X[:, 1:3])


def test_slice_out_of_strict_bounds(network):
    layer = network.net.add_slice(network.input(torch.ones(3), dynamic=[0]), (0,), (3,), (1,))
    interpreter = network.interpreter(layer.get_output(0))
    with pytest.raises(LoweringError, match="SLICE"):
        interpreter(torch.ones(2))


def test_slice_with_a_computed_size(network):
    """All but the last column of a dynamic dimension."""
    net, x = network.net, network.input(X, dynamic=[2])
    shape = net.add_shape(x).get_output(0)
    one = network.constant(torch.tensor([0, 0, 1]))
    size = net.add_elementwise(shape, one, network.trt.ElementWiseOperation.SUB).get_output(0)
    layer = net.add_slice(x, (0, 0, 0), (0, 0, 0), (1, 1, 1))
    layer.set_input(2, size)
    assert torch.equal(only_output(network, layer), X[:, :, :-1])


def test_concatenation(network):
    layer = network.net.add_concatenation([network.input(X), network.input(X + 1)])
    layer.axis = 1
    assert torch.equal(only_output(network, layer), torch.cat([X, X + 1], 1))


def test_squeeze_and_unsqueeze(network):
    x = network.input(torch.ones(1, 3, 1))
    squeezed = network.net.add_squeeze(x, network.constant(torch.tensor([-1]))).get_output(0)
    layer = network.net.add_unsqueeze(squeezed, network.constant(torch.tensor([0, 3])))
    assert only_output(network, layer).shape == (1, 1, 3, 1)


def test_padding_adds_zeros_and_trims(network):
    x = torch.ones(1, 1, 3, 3)
    layer = network.net.add_padding_nd(network.input(x), (1, -1), (0, 2))
    assert torch.equal(only_output(network, layer), torch.nn.functional.pad(x, (-1, 2, 1, 0)))


def test_linspace(network):
    layer = network.net.add_fill((4,), network.trt.FillOperation.LINSPACE, network.trt.float32)
    layer.alpha, layer.beta = 1.0, 0.5
    assert only_output(network, layer).tolist() == [1.0, 1.5, 2.0, 2.5]


def test_linspace_in_two_dimensions_from_tensors(network):
    layer = network.net.add_fill((2, 3), network.trt.FillOperation.LINSPACE, network.trt.int32)
    layer.set_input(1, network.constant(torch.tensor(10, dtype=torch.int32)))
    layer.set_input(2, network.constant(torch.tensor([100, 1], dtype=torch.int32)))
    assert only_output(network, layer).tolist() == [[10, 11, 12], [110, 111, 112]]


def test_linspace_of_a_computed_length(network):
    net, x = network.net, network.input(torch.ones(5), dynamic=[0])
    layer = net.add_fill((1,), network.trt.FillOperation.LINSPACE, network.trt.int64)
    layer.set_input(0, net.add_shape(x).get_output(0))
    layer.set_input(1, network.constant(torch.tensor(0)))
    layer.set_input(2, network.constant(torch.tensor([1])))
    assert only_output(network, layer).tolist() == [0, 1, 2, 3, 4]


def test_random_numbers_are_refused(network):
    layer = network.net.add_fill((4,), network.trt.FillOperation.RANDOM_UNIFORM, network.trt.float32)
    with pytest.raises(LoweringError, match="RANDOM_UNIFORM"):
        network.interpreter(layer.get_output(0))


def test_non_zero(network):
    """TensorRT-RTX does not build it."""
    layer = network.net.add_non_zero(network.input(torch.tensor([[0.0, 1.0], [2.0, 3.0]])))
    assert only_output(network, layer, build=False).tolist() == [[0, 1, 1], [1, 0, 1]]


def test_assertion(network):
    net, x = network.net, network.input(torch.ones(2, 3), dynamic=[0])
    two = network.constant(torch.tensor([2, 3]))
    equal = net.add_elementwise(net.add_shape(x).get_output(0), two, network.trt.ElementWiseOperation.EQUAL)
    net.add_assertion(equal.get_output(0), "two rows, please")
    interpreter = network.interpreter(net.add_identity(x).get_output(0))
    network.build()
    interpreter(torch.ones(2, 3))
    with pytest.raises(LoweringError, match="two rows, please"):
        interpreter(torch.ones(4, 3))


def test_reverse_sequence(network):
    x = network.input(torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
    layer = network.net.add_reverse_sequence(x, network.constant(torch.tensor([2, 3], dtype=torch.int32)))
    layer.batch_axis, layer.sequence_axis = 0, 1
    assert only_output(network, layer).tolist() == [[2, 1, 3], [6, 5, 4]]
