import pytest
import torch

from tests.reference.network import Network, only_output
from torchtrt_bridge.errors import LoweringError, ShapeRangeError


@pytest.fixture
def network():
    return Network()


def relu_network(network, value, dynamic=()):
    x = network.input(value, dynamic)
    return network.net.add_activation(x, network.trt.ActivationType.RELU).get_output(0)


def test_names_follow_the_networks_order(network):
    a, b = network.input(torch.ones(2)), network.input(torch.ones(2))
    out = network.net.add_elementwise(b, a, network.trt.ElementWiseOperation.SUB).get_output(0)
    out.name = "difference"
    interpreter = network.interpreter(out)
    assert interpreter.input_names == ["input0", "input1"]
    assert interpreter.output_names == ["difference"]
    torch.testing.assert_close(
        interpreter(torch.tensor([1.0, 2.0]), torch.tensor([5.0, 7.0]))[0], torch.tensor([4.0, 5.0])
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2, 3, dtype=torch.float16), "float16 where TensorRT says float32"),
        (torch.ones(2, 3, 1), "shape"),
        (torch.ones(2, 4), "shape"),
        (torch.ones(2, 3, device="meta"), "meta"),
    ],
)
def test_wrong_inputs_are_refused(network, value, message):
    interpreter = network.interpreter(relu_network(network, torch.ones(2, 3)))
    with pytest.raises(ShapeRangeError, match=message):
        interpreter(value)


def test_a_wrong_number_of_inputs_is_refused(network):
    interpreter = network.interpreter(relu_network(network, torch.ones(2)))
    with pytest.raises(ShapeRangeError, match="takes 1 inputs"):
        interpreter()


def test_dynamic_dimensions_take_any_size(network):
    interpreter = network.interpreter(relu_network(network, torch.ones(2, 3), dynamic=[0]))
    assert interpreter(torch.ones(7, 3))[0].shape == (7, 3)


def test_unknown_layers_are_named(network):
    x = network.input(torch.ones(1, 4, 2, 2))
    layer = network.net.add_lrn(x, 3, 1.0, 0.75, 1.0)
    layer.name = "old_norm"
    with pytest.raises(LoweringError, match=r"'old_norm'.*LRN"):
        network.interpreter(layer.get_output(0))


def test_a_result_that_contradicts_tensorrt_is_refused(network, monkeypatch):
    from torchtrt_bridge.reference.registry import READERS

    monkeypatch.setitem(READERS, "ACTIVATION", lambda layer: lambda x: x[:1])
    interpreter = network.interpreter(relu_network(network, torch.ones(2, 3)))
    with pytest.raises(LoweringError, match=r"ACTIVATION.*shape \(1, 3\) where TensorRT says \(2, 3\)"):
        interpreter(torch.ones(2, 3))


def test_a_result_of_another_dtype_is_refused(network, monkeypatch):
    from torchtrt_bridge.reference.registry import READERS

    monkeypatch.setitem(READERS, "ACTIVATION", lambda layer: lambda x: x.double())
    interpreter = network.interpreter(relu_network(network, torch.ones(2, 3)))
    with pytest.raises(LoweringError, match="float64 where TensorRT says float32"):
        interpreter(torch.ones(2, 3))


def test_outputs_share_no_memory_with_inputs(network):
    x = network.input(torch.ones(2))
    value = torch.ones(2)
    (out,) = network.interpreter(network.net.add_identity(x).get_output(0))(value)
    out += 1
    assert value.tolist() == [1, 1]


def test_intermediate_tensors_are_released(network):
    x = network.input(torch.ones(2))
    for _ in range(3):
        x = network.net.add_activation(x, network.trt.ActivationType.RELU).get_output(0)
    interpreter = network.interpreter(x)
    assert [len(step.release) for step in interpreter._steps] == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32, torch.int64, torch.bool])
def test_constants_are_read_back_without_a_side_table(network, dtype):
    value = torch.tensor([[0, 1, 2], [3, 4, 5]]).to(dtype)
    x = network.constant(value)
    interpreter = network.interpreter(network.net.add_identity(x).get_output(0), side_table=False)
    torch.testing.assert_close(interpreter()[0], value)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_constants_that_cannot_be_read_back_are_named(network, dtype):
    x = network.constant(torch.ones(2, dtype=dtype))
    with pytest.raises(LoweringError, match=r"'constant0'.*BF16.*constants"):
        network.interpreter(network.net.add_identity(x).get_output(0), side_table=False)


def test_constants_from_the_side_table(network):
    value = torch.randn(3).bfloat16()
    layer = network.net.add_activation(network.constant(value), network.trt.ActivationType.RELU)
    torch.testing.assert_close(only_output(network, layer), value.relu())


def test_layers_run_in_the_order_of_their_tensors(network):
    """`set_input` may make an early layer depend on a later one."""
    x = network.input(torch.tensor([[1.0, 2.0]]))
    shuffle = network.net.add_shuffle(x)
    dims = network.constant(torch.tensor([2, 1]))
    shuffle.set_input(1, dims)
    assert only_output(network, shuffle).tolist() == [[1.0], [2.0]]


def test_layers_that_no_output_needs_are_skipped(network):
    x = network.input(torch.ones(2))
    relu_network(network, torch.ones(2))
    interpreter = network.interpreter(network.net.add_identity(x).get_output(0))
    assert [step.title.split()[-1] for step in interpreter._steps] == ["(IDENTITY)"]


def test_a_false_assertion_is_not_skipped(network):
    x = network.input(torch.ones(2))
    network.net.add_assertion(network.constant(torch.tensor([False])), "never")
    with pytest.raises(LoweringError, match="never"):
        network.interpreter(network.net.add_identity(x).get_output(0))(torch.ones(2))
