import pytest
import torch
import torch.nn.functional as F

from tests.reference.network import Network, only_output
from torchtrt_bridge.errors import LoweringError


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


REDUCTIONS = {
    "SUM": lambda x, axes, keep: x.sum(axes, keep),
    "AVG": lambda x, axes, keep: x.mean(axes, keep),
    "MAX": lambda x, axes, keep: x.amax(axes, keep),
    "MIN": lambda x, axes, keep: x.amin(axes, keep),
}


def test_topk_refuses_nan(network):
    x = network.input(torch.tensor([[1.0, float("nan")]]))
    layer = network.net.add_topk(x, network.trt.TopKOperation.MAX, 1, 2)
    with pytest.raises(LoweringError, match="orders NaN"):
        network.interpreter(layer.get_output(0))(torch.tensor([[1.0, float("nan")]]))


@pytest.mark.parametrize("kind", REDUCTIONS)
@pytest.mark.parametrize("axes", [(1,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("keep", [True, False])
def test_reduce(network, kind, axes, keep):
    x = torch.randn(2, 3, 4)
    operation = getattr(network.trt.ReduceOperation, kind)
    layer = network.net.add_reduce(network.input(x), operation, sum(1 << axis for axis in axes), keep)
    torch.testing.assert_close(only_output(network, layer), REDUCTIONS[kind](x, axes, keep))


def test_product(network):
    x = torch.tensor([[1, 2, 3], [4, 5, 6]])
    layer = network.net.add_reduce(network.input(x), network.trt.ReduceOperation.PROD, 3, False)
    assert only_output(network, layer).item() == 720


def test_half_precision_sums_are_kept_in_float32(network):
    x = torch.ones(2050, dtype=torch.float16)
    layer = network.net.add_reduce(network.input(x), network.trt.ReduceOperation.SUM, 1, False)
    assert only_output(network, layer).item() == 2050


@pytest.mark.parametrize(
    ("kind", "values", "index"),
    [
        ("MAX", [[5, 4, 4], [9, 8, 2]], [[1, 2, 4], [3, 0, 2]]),
        ("MIN", [[1, 3, 4], [1, 1, 2]], [[0, 3, 2], [1, 4, 2]]),
    ],
)
def test_topk_is_sorted_and_takes_the_first_of_equals(network, kind, values, index):
    x = torch.tensor([[1.0, 5, 4, 3, 4], [8, 1, 2, 9, 1]])
    layer = network.net.add_topk(network.input(x), getattr(network.trt.TopKOperation, kind), 3, 2)
    found, where = network.run(layer.get_output(0), layer.get_output(1))
    assert found.tolist() == values
    assert where.dtype == torch.int32
    assert where.tolist() == index


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_softmax(network, axis):
    x = torch.randn(2, 3, 4)
    layer = network.net.add_softmax(network.input(x))
    layer.axes = 1 << axis
    torch.testing.assert_close(only_output(network, layer), x.softmax(axis))


@pytest.mark.parametrize(
    ("exclusive", "reverse", "expected"),
    [(False, False, [1, 3, 6]), (True, False, [0, 1, 3]), (False, True, [6, 5, 3]), (True, True, [5, 3, 0])],
)
def test_cumulative(network, exclusive, reverse, expected):
    x = network.input(torch.tensor([[1.0, 2.0, 3.0]]))
    axis = network.constant(torch.tensor(1))
    layer = network.net.add_cumulative(x, axis, network.trt.CumulativeOperation.SUM, exclusive, reverse)
    assert only_output(network, layer).tolist() == [expected]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_layer_norm(network, dtype):
    x, scale, bias = (torch.randn(size).to(dtype) for size in ((2, 3, 8), (1, 1, 8), (1, 1, 8)))
    layer = network.net.add_normalization(network.input(x), network.constant(scale), network.constant(bias), 4)
    expected = F.layer_norm(x.float(), [8], scale.float().flatten(), bias.float().flatten())
    torch.testing.assert_close(only_output(network, layer), expected.to(dtype))


def test_instance_norm(network):
    x, scale, bias = (torch.randn(size) for size in ((2, 4, 3, 3), (1, 4, 1, 1), (1, 4, 1, 1)))
    layer = network.net.add_normalization(network.input(x), network.constant(scale), network.constant(bias), 12)
    layer.epsilon = 1e-3
    expected = F.instance_norm(x, weight=scale.flatten(), bias=bias.flatten(), eps=1e-3)
    torch.testing.assert_close(only_output(network, layer), expected)


def test_group_norm_with_a_scale_per_channel(network):
    x, scale, bias = (torch.randn(size) for size in ((2, 4, 3, 3), (1, 4, 1, 1), (1, 4, 1, 1)))
    layer = network.net.add_normalization_v2(network.input(x), network.constant(scale), network.constant(bias), 12)
    layer.num_groups = 2
    torch.testing.assert_close(only_output(network, layer), F.group_norm(x, 2, scale.flatten(), bias.flatten()))


def test_group_norm_with_a_scale_per_group(network):
    x, scale, bias = (torch.randn(size) for size in ((2, 4, 3, 3), (1, 2, 1, 1), (1, 2, 1, 1)))
    layer = network.net.add_normalization(network.input(x), network.constant(scale), network.constant(bias), 12)
    layer.num_groups = 2
    by_channel = [value.flatten().repeat_interleave(2) for value in (scale, bias)]
    torch.testing.assert_close(only_output(network, layer), F.group_norm(x, 2, *by_channel))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("kind", "counts_padding"), [("MAX", True), ("AVERAGE", True), ("AVERAGE", False)])
def test_pooling(network, dims, kind, counts_padding):
    x = torch.randn(2, 3, *[7] * dims)
    layer = network.net.add_pooling_nd(network.input(x), getattr(network.trt.PoolingType, kind), [3] * dims)
    layer.stride_nd, layer.padding_nd = [2] * dims, [1] * dims
    layer.average_count_excludes_padding = not counts_padding
    if kind == "MAX":
        expected = (F.max_pool2d if dims == 2 else F.max_pool3d)(x, 3, 2, 1)
    else:
        average = F.avg_pool2d if dims == 2 else F.avg_pool3d
        expected = average(x, 3, 2, 1, count_include_pad=counts_padding)
    torch.testing.assert_close(only_output(network, layer), expected)


@pytest.mark.parametrize(("excludes", "corner"), [(True, 1.0), (False, 4 / 9)])
def test_average_at_a_corner(network, excludes, corner):
    layer = network.net.add_pooling_nd(network.input(torch.ones(1, 1, 4, 4)), network.trt.PoolingType.AVERAGE, (3, 3))
    layer.padding_nd, layer.average_count_excludes_padding = (1, 1), excludes
    assert only_output(network, layer)[0, 0, 0, 0].item() == pytest.approx(corner)


@pytest.mark.parametrize("kind", ["MAX", "AVERAGE"])
@pytest.mark.parametrize("counts_padding", [True, False])
def test_pooling_rounds_up(network, kind, counts_padding):
    """Like PyTorch's ceil_mode where the last window starts inside the image."""
    x = torch.randn(1, 2, 6, 6)
    layer = network.net.add_pooling_nd(network.input(x), getattr(network.trt.PoolingType, kind), (3, 3))
    layer.stride_nd, layer.padding_mode = (2, 2), network.trt.PaddingMode.EXPLICIT_ROUND_UP
    layer.average_count_excludes_padding = not counts_padding
    if kind == "MAX":
        expected = F.max_pool2d(x, 3, 2, ceil_mode=True)
    else:  # unlike PyTorch's, an average that counts the padding counts what rounds the size up too
        divisor = 9 if counts_padding else None
        expected = F.avg_pool2d(x, 3, 2, ceil_mode=True, count_include_pad=counts_padding, divisor_override=divisor)
    torch.testing.assert_close(only_output(network, layer), expected)


@pytest.mark.parametrize(("mode", "pad"), [("SAME_UPPER", (0, 1)), ("SAME_LOWER", (1, 0))])
def test_pooling_same_padding(network, mode, pad):
    x = torch.randn(1, 2, 6, 6)
    layer = network.net.add_pooling_nd(network.input(x), network.trt.PoolingType.MAX, (3, 3))
    layer.stride_nd, layer.padding_mode = (2, 2), getattr(network.trt.PaddingMode, mode)
    padded = F.pad(x, pad * 2, value=-torch.inf)
    torch.testing.assert_close(only_output(network, layer), F.max_pool2d(padded, 3, 2))
