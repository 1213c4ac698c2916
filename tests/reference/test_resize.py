import pytest
import torch
import torch.nn.functional as F

from tests.reference.network import Network, only_output


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


def add_resize(network, x, mode, coordinates, **options):
    trt = network.trt
    layer = network.net.add_resize(x)
    layer.resize_mode = getattr(trt.InterpolationMode, mode)
    layer.coordinate_transformation = getattr(trt.ResizeCoordinateTransformation, coordinates)
    for name, value in options.items():
        setattr(layer, name, value)
    return layer


# What PyTorch computes by the same formula.
TORCH = [
    ("NEAREST", "ASYMMETRIC", {"mode": "nearest"}),
    ("NEAREST", "HALF_PIXEL", {"mode": "nearest-exact"}),
    ("LINEAR", "HALF_PIXEL", {"mode": "bilinear", "align_corners": False}),
    ("LINEAR", "ALIGN_CORNERS", {"mode": "bilinear", "align_corners": True}),
    ("CUBIC", "HALF_PIXEL", {"mode": "bicubic", "align_corners": False}),
    ("CUBIC", "ALIGN_CORNERS", {"mode": "bicubic", "align_corners": True}),
]


@pytest.mark.parametrize(("mode", "coordinates", "options"), TORCH)
@pytest.mark.parametrize("size", [(10, 14), (3, 4), (8, 3)])
def test_resize_like_pytorch(network, mode, coordinates, options, size):
    x = torch.randn(1, 2, 5, 7)
    layer = add_resize(network, network.input(x), mode, coordinates, shape=(1, 2, *size))
    if mode == "NEAREST" and coordinates == "HALF_PIXEL":
        layer.nearest_rounding = network.trt.ResizeRoundMode.HALF_UP
    torch.testing.assert_close(only_output(network, layer), F.interpolate(x, size, **options), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [("FLOOR", [0, 0, 1, 1]), ("CEIL", [0, 1, 1, 1]), ("HALF_UP", [0, 1, 1, 1]), ("HALF_DOWN", [0, 0, 1, 1])],
)
def test_nearest_rounding(network, rounding, expected):
    """Positions 0, 0.5, 1 and 1.5 of two elements; the last is cut to 1."""
    x = network.input(torch.tensor([[[0.0, 1.0]]]))
    layer = add_resize(network, x, "NEAREST", "ASYMMETRIC", scales=[1, 1, 2])
    layer.nearest_rounding = getattr(network.trt.ResizeRoundMode, rounding)
    assert only_output(network, layer).tolist() == [[expected]]


def test_linear_asymmetric(network):
    x = network.input(torch.tensor([[[0.0, 4.0]]]))
    layer = add_resize(network, x, "LINEAR", "ASYMMETRIC", shape=(1, 1, 4))
    assert only_output(network, layer).tolist() == [[[0, 2, 4, 4]]]


@pytest.mark.parametrize(("selector", "expected"), [("FORMULA", 1.5), ("UPPER", 0.0)])
def test_single_pixel(network, selector, expected):
    x = network.input(torch.tensor([[[0.0, 1.0, 2.0, 3.0]]]))
    layer = add_resize(network, x, "LINEAR", "HALF_PIXEL", shape=(1, 1, 1))
    layer.selector_for_single_pixel = getattr(network.trt.ResizeSelector, selector)
    assert only_output(network, layer).item() == expected


@pytest.mark.parametrize("excludes", [False, True])
def test_cubic_at_the_border(network, excludes):
    """Position -0.25 among 1, 2, 3, 4: taps -2, -1 stand for the first element, or are left out."""
    x = network.input(torch.tensor([[[[1.0, 2.0, 3.0, 4.0]] * 4]]))
    layer = add_resize(network, x, "CUBIC", "HALF_PIXEL", shape=(1, 1, 4, 8))
    layer.exclude_outside, layer.cubic_coeff = excludes, -0.5
    # Keys' kernel with a = -0.5 at the distances 1.75, 0.75, 0.25, 1.25.
    weights = [-0.0234375, 0.2265625, 0.8671875, -0.0703125]
    far, before, first, second = weights
    expected = (first + 2 * second) / (first + second) if excludes else (far + before + first) + 2 * second
    assert only_output(network, layer)[0, 0, 0, 0].item() == pytest.approx(expected, rel=1e-5)


def test_resize_to_a_computed_shape(network):
    x = torch.randn(1, 1, 3, 3)
    layer = add_resize(network, network.input(x), "NEAREST", "ASYMMETRIC")
    target = network.input(torch.ones(1, 1, 6, 6), dynamic=[2, 3])
    layer.set_input(1, network.net.add_shape(target).get_output(0))
    assert torch.equal(only_output(network, layer), F.interpolate(x, (6, 6)))


@pytest.mark.parametrize("mode", ["LINEAR", "NEAREST"])
@pytest.mark.parametrize(
    ("border", "torch_border"), [("FILL", "zeros"), ("CLAMP", "border"), ("REFLECT", "reflection")]
)
def test_grid_sample(network, mode, border, torch_border):
    x, grid = torch.randn(1, 2, 4, 4), torch.rand(1, 3, 3, 2) * 3 - 1.5
    layer = network.net.add_grid_sample(network.input(x), network.input(grid))
    layer.interpolation_mode = getattr(network.trt.InterpolationMode, mode)
    layer.sample_mode = getattr(network.trt.SampleMode, border)
    expected = F.grid_sample(x, grid, {"LINEAR": "bilinear"}.get(mode, "nearest"), torch_border, False)
    torch.testing.assert_close(only_output(network, layer), expected)
