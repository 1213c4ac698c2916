import pytest
import torch

from tests.reference.network import Network, only_output
from torchtrt_bridge.reference.layer import unpack_int4


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


def round_trip(network, x, scale, kind, axis=None):
    """Add a quantization and a dequantization that share the scale."""
    factor = network.constant(scale)
    quantize = network.net.add_quantize(network.input(x), factor, getattr(network.trt, kind))
    dequantize = network.net.add_dequantize(quantize.get_output(0), factor, network.trt.float32)
    if axis is not None:
        quantize.axis = dequantize.axis = axis
    return dequantize


def test_int8_rounds_halves_to_even_and_clamps(network):
    x = torch.tensor([[0.25, 0.75, 1.25, -0.25, -0.75, 100.0, -100.0]])
    layer = round_trip(network, x, torch.tensor([0.5]), "int8")
    assert only_output(network, layer).tolist() == [[0, 1, 1, 0, -1, 63.5, -64]]


@pytest.mark.parametrize("axis", [0, 1])
def test_int8_by_channel(network, axis):
    x, scale = torch.randn(3, 3), torch.tensor([0.1, 0.2, 0.4])
    by_channel = scale.reshape(3, 1) if axis == 0 else scale.reshape(1, 3)
    expected = (x / by_channel).round().clamp(-128, 127) * by_channel
    torch.testing.assert_close(only_output(network, round_trip(network, x, scale, "int8", axis)), expected)


def test_fp8_clamps_to_its_largest_value(network):
    x = torch.tensor([[1.06, 1000.0, -1000.0, 0.3]])
    layer = round_trip(network, x, torch.tensor([1.0]), "fp8")
    assert only_output(network, layer).tolist() == [[1.0, 448, -448, 0.3125]]


def test_int8_convolution_weights_dequantized_by_channel(network):
    kernel = torch.randint(-128, 128, (4, 2, 3, 3), dtype=torch.int8)
    scale = torch.rand(4) * 0.01
    layer = network.net.add_dequantize(network.constant(kernel), network.constant(scale), network.trt.float32)
    layer.axis = 0
    torch.testing.assert_close(only_output(network, layer, build=False), kernel * scale.reshape(4, 1, 1, 1))


def test_int4_blocks(network):
    """Two blocks of 16 along the first axis; int4 weights lie two a byte, low half first."""
    values = torch.randint(-8, 8, (32, 2), dtype=torch.int8)
    pairs = values.flatten().reshape(-1, 2)
    packed = ((pairs[:, 0] & 15) | (pairs[:, 1] << 4)).to(torch.uint8)
    weights = network.trt.Weights(network.trt.int4, packed.data_ptr(), values.numel())
    constant = network.net.add_constant((32, 2), weights)
    constant.name = "int4"
    network.constants["int4"] = packed
    scale = torch.rand(2, 2)
    layer = network.net.add_dequantize(constant.get_output(0), network.constant(scale), network.trt.float32)
    expected = values * scale.repeat_interleave(16, 0)
    torch.testing.assert_close(only_output(network, layer, build=False), expected)


def test_unpacking_int4():
    assert unpack_int4(torch.tensor([0x21, 0xF8], dtype=torch.uint8)).tolist() == [1, 2, -8, -1]
