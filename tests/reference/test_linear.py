import pytest
import torch
import torch.nn.functional as F

from tests.reference.network import Network, only_output


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


@pytest.mark.parametrize(
    ("a", "op0", "b", "op1", "equation"),
    [
        ((2, 3), "NONE", (3, 4), "NONE", "ij,jk->ik"),
        ((3, 2), "TRANSPOSE", (4, 3), "TRANSPOSE", "ji,kj->ik"),
        ((5, 2, 3), "NONE", (1, 3, 4), "NONE", "bij,cjk->bik"),
        ((2, 3), "NONE", (3,), "VECTOR", "ij,j->i"),
        ((3,), "VECTOR", (3, 4), "NONE", "j,jk->k"),
        ((3,), "VECTOR", (3,), "VECTOR", "j,j->"),
        ((5, 3), "VECTOR", (5, 3, 4), "NONE", "bj,bjk->bk"),
        ((5, 4, 3), "NONE", (5, 3), "VECTOR", "bij,bj->bi"),
        ((5, 3), "VECTOR", (5, 3), "VECTOR", "bj,bj->b"),
    ],
)
def test_matrix_multiply(network, a, op0, b, op1, equation):
    left, right = torch.randn(a), torch.randn(b)
    operation = network.trt.MatrixOperation
    layer = network.net.add_matrix_multiply(
        network.input(left), getattr(operation, op0), network.input(right), getattr(operation, op1)
    )
    torch.testing.assert_close(only_output(network, layer), torch.einsum(equation, left, right))


def test_half_precision_products_are_summed_in_float32(network):
    """2049 ones: a float16 sum would stop at 2048."""
    ones = torch.ones(1, 2050, dtype=torch.float16)
    none = network.trt.MatrixOperation.NONE
    layer = network.net.add_matrix_multiply(network.input(ones), none, network.constant(ones.T), none)
    assert only_output(network, layer).item() == 2050


def test_einsum(network):
    a, b = torch.randn(2, 3, 4), torch.randn(4, 3)
    layer = network.net.add_einsum([network.input(a), network.input(b)], "bij,jk->bik")
    torch.testing.assert_close(only_output(network, layer), a @ b)


@pytest.mark.parametrize(
    ("dims", "options"),
    [
        (2, {}),
        (2, {"stride": 2, "padding": 1}),
        (2, {"stride": 2, "padding": 2, "dilation": 2}),
        (2, {"groups": 2, "padding": 1}),
        (3, {"stride": 2, "padding": 1}),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_convolution(network, dims, options, bias, dtype):
    x = torch.randn(2, 4, *[7] * dims).to(dtype)
    kernel = torch.randn(6, 4 // options.get("groups", 1), *[3] * dims).to(dtype)
    offset = torch.randn(6).to(dtype) if bias else None
    weights = [offset.numpy()] if bias else []
    layer = network.net.add_convolution_nd(network.input(x), 6, [3] * dims, kernel.numpy(), *weights)
    layer.stride_nd = [options.get("stride", 1)] * dims
    layer.padding_nd = [options.get("padding", 0)] * dims
    layer.dilation_nd = [options.get("dilation", 1)] * dims
    layer.num_groups = options.get("groups", 1)
    convolve = F.conv2d if dims == 2 else F.conv3d
    expected = convolve(x.float(), kernel.float(), offset.float() if bias else None, **options)
    torch.testing.assert_close(only_output(network, layer), expected.to(dtype))


def test_convolution_with_different_padding_at_each_side(network):
    x, kernel = torch.randn(1, 2, 5, 6), torch.randn(3, 2, 3, 2)
    layer = network.net.add_convolution_nd(network.input(x), 3, (3, 2), kernel.numpy())
    layer.pre_padding, layer.post_padding = (0, 1), (2, 0)
    torch.testing.assert_close(only_output(network, layer), F.conv2d(F.pad(x, (1, 0, 0, 2)), kernel))


@pytest.mark.parametrize(
    ("mode", "size", "padding", "out"),
    [
        ("SAME_UPPER", 6, (0, 1, 0, 1), 3),
        ("SAME_LOWER", 6, (1, 0, 1, 0), 3),
        ("SAME_UPPER", 7, (1, 1, 1, 1), 4),
        ("EXPLICIT_ROUND_UP", 6, (0, 1, 0, 1), 3),
        ("EXPLICIT_ROUND_DOWN", 6, (0, 0, 0, 0), 2),
    ],
)
def test_convolution_padding_modes(network, mode, size, padding, out):
    x, kernel = torch.randn(1, 2, size, size), torch.randn(3, 2, 3, 3)
    layer = network.net.add_convolution_nd(network.input(x), 3, (3, 3), kernel.numpy())
    layer.stride_nd, layer.padding_mode = (2, 2), getattr(network.trt.PaddingMode, mode)
    result = only_output(network, layer)
    assert result.shape == (1, 3, out, out)
    torch.testing.assert_close(result, F.conv2d(F.pad(x, padding), kernel, stride=2))


def test_convolution_with_the_kernel_as_an_input(network):
    x, kernel = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
    layer = network.net.add_convolution_nd(network.input(x), 3, (3, 3), network.trt.Weights())
    layer.set_input(1, network.input(kernel))
    torch.testing.assert_close(only_output(network, layer), F.conv2d(x, kernel))


def test_convolution_weights_from_the_side_table(network):
    x, kernel, bias = (t.bfloat16() for t in (torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3), torch.randn(3)))
    weights = [network.trt.Weights(network.trt.bfloat16, t.data_ptr(), t.numel()) for t in (kernel, bias)]
    layer = network.net.add_convolution_nd(network.input(x), 3, (3, 3), *weights)
    layer.name = "conv"
    network.constants |= {"conv.kernel": kernel, "conv.bias": bias}
    expected = F.conv2d(x.float(), kernel.float(), bias.float()).bfloat16()
    torch.testing.assert_close(only_output(network, layer), expected)


@pytest.mark.parametrize(
    ("dims", "options"),
    [
        (2, {}),
        (2, {"stride": 2, "padding": 1}),
        (2, {"groups": 2, "stride": 3}),
        (3, {"stride": 2}),
        (2, {"dilation": 2}),
    ],
)
def test_deconvolution(network, dims, options):
    groups = options.get("groups", 1)
    x, kernel, bias = torch.randn(2, 4, *[4] * dims), torch.randn(4, 6 // groups, *[3] * dims), torch.randn(6)
    layer = network.net.add_deconvolution_nd(network.input(x), 6, [3] * dims, kernel.numpy(), bias.numpy())
    layer.stride_nd = [options.get("stride", 1)] * dims
    layer.padding_nd = [options.get("padding", 0)] * dims
    layer.dilation_nd = [options.get("dilation", 1)] * dims
    layer.num_groups = groups
    deconvolve = F.conv_transpose2d if dims == 2 else F.conv_transpose3d
    torch.testing.assert_close(only_output(network, layer), deconvolve(x, kernel, bias, **options))


def test_deconvolution_with_output_padding(network):
    """PyTorch's output padding is less padding at the end."""
    x, kernel = torch.randn(1, 2, 4, 4), torch.randn(2, 3, 3, 3)
    layer = network.net.add_deconvolution_nd(network.input(x), 3, (3, 3), kernel.numpy())
    layer.stride_nd, layer.pre_padding, layer.post_padding = (2, 2), (1, 1), (0, 0)
    expected = F.conv_transpose2d(x, kernel, stride=2, padding=1, output_padding=1)
    torch.testing.assert_close(only_output(network, layer), expected)


@pytest.mark.parametrize(("mode", "first"), [("SAME_UPPER", 0), ("SAME_LOWER", 1)])
def test_deconvolution_padding_modes(network, mode, first):
    x, kernel = torch.randn(1, 2, 4, 4), torch.randn(2, 3, 3, 3)
    layer = network.net.add_deconvolution_nd(network.input(x), 3, (3, 3), kernel.numpy())
    layer.stride_nd, layer.padding_mode = (2, 2), getattr(network.trt.PaddingMode, mode)
    full = F.conv_transpose2d(x, kernel, stride=2)
    cut = slice(first, first + 8)
    torch.testing.assert_close(only_output(network, layer), full[:, :, cut, cut])
