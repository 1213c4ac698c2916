import math

import pytest
import torch

from tests.reference.network import Network, only_output

X = torch.tensor([-4.0, -1.5, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 1.5, 2.5, 4.0])


@pytest.fixture
def network():
    return Network()


# (type, alpha, beta, expectation of one number)
ACTIVATIONS = [
    ("RELU", 0, 0, lambda x: max(x, 0)),
    ("SIGMOID", 0, 0, lambda x: 1 / (1 + math.exp(-x))),
    ("TANH", 0, 0, math.tanh),
    ("LEAKY_RELU", 0.1, 0, lambda x: x if x >= 0 else 0.1 * x),
    ("ELU", 0.7, 0, lambda x: x if x >= 0 else 0.7 * (math.exp(x) - 1)),
    ("SELU", 1.7, 1.1, lambda x: 1.1 * x if x > 0 else 1.1 * (1.7 * math.exp(x) - 1.7)),
    ("SOFTSIGN", 0, 0, lambda x: x / (1 + abs(x))),
    ("SOFTPLUS", 0.5, 2.0, lambda x: 0.5 * math.log(math.exp(2 * x) + 1)),
    ("CLIP", -1.0, 1.0, lambda x: max(-1.0, min(1.0, x))),
    ("HARD_SIGMOID", 0.2, 0.5, lambda x: max(0, min(1, 0.2 * x + 0.5))),
    ("SCALED_TANH", 1.5, 0.5, lambda x: 1.5 * math.tanh(0.5 * x)),
    ("THRESHOLDED_RELU", 0.5, 0, lambda x: x if x > 0.5 else 0),
    ("GELU_ERF", 0, 0, lambda x: 0.5 * x * (1 + math.erf(math.sqrt(0.5) * x))),
    ("GELU_TANH", 0, 0, lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (0.044715 * x**3 + x)))),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("kind", "alpha", "beta", "expected"), ACTIVATIONS, ids=[a[0] for a in ACTIVATIONS])
def test_activation(network, kind, alpha, beta, expected, dtype):
    layer = network.net.add_activation(network.input(X.to(dtype)), getattr(network.trt.ActivationType, kind))
    layer.alpha, layer.beta = alpha, beta
    wanted = torch.tensor([expected(x) for x in X.tolist()]).to(dtype)
    torch.testing.assert_close(only_output(network, layer), wanted)


def test_softplus_does_not_overflow(network):
    layer = network.net.add_activation(network.input(torch.tensor([200.0])), network.trt.ActivationType.SOFTPLUS)
    layer.alpha, layer.beta = 1.0, 1.0
    assert only_output(network, layer).item() == 200.0


UNARY = {
    "EXP": math.exp,
    "NEG": lambda x: -x,
    "ABS": abs,
    "SIN": math.sin,
    "COS": math.cos,
    "TAN": math.tan,
    "SINH": math.sinh,
    "COSH": math.cosh,
    "ATAN": math.atan,
    "ASINH": math.asinh,
    "CEIL": math.ceil,
    "FLOOR": math.floor,
    "ERF": math.erf,
    "SIGN": lambda x: (x > 0) - (x < 0),
    "ROUND": round,  # Python too rounds halves to even
}


@pytest.mark.parametrize("kind", UNARY)
def test_unary(network, kind):
    layer = network.net.add_unary(network.input(X), getattr(network.trt.UnaryOperation, kind))
    torch.testing.assert_close(only_output(network, layer), torch.tensor([float(UNARY[kind](x)) for x in X.tolist()]))


@pytest.mark.parametrize(
    ("kind", "values", "function"),
    [
        ("LOG", [0.5, 1.0, 3.0], math.log),
        ("SQRT", [0.0, 4.0, 2.0], math.sqrt),
        ("RECIP", [-2.0, 4.0, 0.5], lambda x: 1 / x),
        ("ASIN", [-1.0, 0.0, 0.5], math.asin),
        ("ACOS", [-1.0, 0.0, 0.5], math.acos),
        ("ACOSH", [1.0, 2.0, 5.0], math.acosh),
        ("ATANH", [-0.5, 0.0, 0.5], math.atanh),
    ],
)
def test_unary_in_its_domain(network, kind, values, function):
    layer = network.net.add_unary(network.input(torch.tensor(values)), getattr(network.trt.UnaryOperation, kind))
    torch.testing.assert_close(only_output(network, layer), torch.tensor([function(x) for x in values]))


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("ISINF", torch.tensor([1.0, math.inf, -math.inf, math.nan]), [False, True, True, False]),
        ("ISNAN", torch.tensor([1.0, math.inf, math.nan]), [False, False, True]),
        ("NOT", torch.tensor([True, False]), [False, True]),
    ],
)
def test_unary_of_bool_results(network, kind, value, expected):
    layer = network.net.add_unary(network.input(value), getattr(network.trt.UnaryOperation, kind))
    assert only_output(network, layer).tolist() == expected


A, B = [7, -7, 7, -7, 6], [2, 2, -2, -2, 3]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("SUM", [9, -5, 5, -9, 9]),
        ("PROD", [14, -14, -14, 14, 18]),
        ("MAX", [7, 2, 7, -2, 6]),
        ("MIN", [2, -7, -2, -7, 3]),
        ("SUB", [5, -9, 9, -5, 3]),
        ("DIV", [3, -3, -3, 3, 2]),
        ("FLOOR_DIV", [3, -4, -4, 3, 2]),
        ("EQUAL", [False] * 5),
        ("GREATER", [True, False, True, False, True]),
        ("LESS", [False, True, False, True, False]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32])
def test_elementwise(network, kind, expected, dtype):
    if kind == "DIV" and dtype.is_floating_point:
        expected = [3.5, -3.5, -3.5, 3.5, 2.0]
    a, b = (network.input(torch.tensor(values).to(dtype)) for values in (A, B))
    layer = network.net.add_elementwise(a, b, getattr(network.trt.ElementWiseOperation, kind))
    assert only_output(network, layer).tolist() == expected


def test_power(network):
    a, b = network.input(torch.tensor([2.0, 4.0, 3.0])), network.input(torch.tensor([3.0, -0.5, 0.0]))
    layer = network.net.add_elementwise(a, b, network.trt.ElementWiseOperation.POW)
    torch.testing.assert_close(only_output(network, layer), torch.tensor([8.0, 0.5, 1.0]))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("AND", [True, False, False]), ("OR", [True, True, False]), ("XOR", [False, True, False])],
)
def test_logic(network, kind, expected):
    a, b = network.input(torch.tensor([True, True, False])), network.input(torch.tensor([True, False, False]))
    layer = network.net.add_elementwise(a, b, getattr(network.trt.ElementWiseOperation, kind))
    assert only_output(network, layer).tolist() == expected


def test_elementwise_broadcasts_ones(network):
    a, b = network.input(torch.ones(2, 1)), network.input(torch.tensor([[1.0, 2.0, 3.0]]))
    layer = network.net.add_elementwise(a, b, network.trt.ElementWiseOperation.SUM)
    assert only_output(network, layer).tolist() == [[2, 3, 4], [2, 3, 4]]


def test_select(network):
    condition = network.input(torch.tensor([[True], [False]]))
    a, b = network.input(torch.tensor([[1.0, 2.0]])), network.input(torch.tensor([[3.0, 4.0]]))
    assert only_output(network, network.net.add_select(condition, a, b)).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (torch.tensor([-1.7, 1.7, 0.0]), torch.int32, [-1, 1, 0]),
        (torch.tensor([-1.7, 0.3, 0.0]), torch.bool, [True, True, False]),
        (torch.tensor([2, -3]), torch.float16, [2.0, -3.0]),
        (torch.tensor([True, False]), torch.int64, [1, 0]),
        (torch.tensor([1.0 + 2**-11]), torch.float16, [1.0]),
    ],
)
def test_cast(network, value, dtype, expected):
    from torchtrt_bridge.trt.dtypes import trt_dtype_from_torch

    layer = network.net.add_cast(network.input(value), trt_dtype_from_torch(network.trt, dtype))
    result = only_output(network, layer)
    assert result.dtype == dtype
    assert result.tolist() == expected


def test_parametric_relu(network):
    x, slopes = (
        network.input(torch.tensor([[-2.0, 2.0], [-4.0, 0.0]])),
        network.constant(torch.tensor([[0.5, 0.25]])),
    )
    layer = network.net.add_parametric_relu(x, slopes)
    assert only_output(network, layer).tolist() == [[-1, 2], [-2, 0]]


@pytest.mark.parametrize(
    ("mode", "shape", "count"),
    [("UNIFORM", (1, 1, 1, 1), 1), ("CHANNEL", (1, 3, 1, 1), 3), ("ELEMENTWISE", (1, 3, 2, 2), 12)],
)
def test_scale(network, mode, shape, count):
    x = torch.rand(1, 3, 2, 2) + 1
    shift, scale, power = torch.rand(count), torch.rand(count) + 0.5, torch.rand(count) + 1
    layer = network.net.add_scale_nd(
        network.input(x), getattr(network.trt.ScaleMode, mode), shift.numpy(), scale.numpy(), power.numpy(), 1
    )
    expected = (x * scale.reshape(shape) + shift.reshape(shape)) ** power.reshape(shape)
    torch.testing.assert_close(only_output(network, layer), expected)
