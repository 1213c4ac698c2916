"""The text of an engine's program, without a GPU: its steps, and the nodes that they are of for certain."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from torchtrt_bridge.trt.engine_program import ProgramStep, nodes_in_name, program_steps, result_nodes


def plan_of(model: nn.Module, *inputs: torch.Tensor) -> bytes:
    program = trtb.export(model.eval(), inputs, precision="fp16", targets=("sm_89",), trial="off", cache_dir="")
    (plan,) = program.plans.values()
    return plan


@functools.cache
def of_convolutions() -> bytes:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3), nn.ReLU())
    return plan_of(model, torch.randn(2, 3, 16, 16))


def test_operations_of_libraries_have_the_name_of_their_layer() -> None:
    found = [(step.kind, step.nodes, step.is_product) for step in program_steps(of_convolutions()) if step.nodes]
    assert found[:3] == [
        ("corrltn", ("convolution",), True),
        ("maxpool", ("max_pool2d",), False),
        ("corrltn", ("convolution_1",), True),
    ]


def test_a_result_in_the_memory_of_another_is_not_taken_for_it() -> None:
    """What is made of the input lies where the first activation will: its name says nothing of the step."""
    first = program_steps(of_convolutions())[0]
    assert first.name.startswith("__myl_Cast")
    assert first.nodes == ()
    assert b'"relu/activation_output.1_' in of_convolutions()


def test_a_kernel_with_a_program_of_its_own_has_the_nodes_in_it() -> None:
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 64), nn.Tanh())
    *_, norm, last = program_steps(plan_of(model, torch.randn(32, 64)))
    assert (norm.kind, norm.nodes) == ("function", ("layer_norm",))  # by its constants
    assert (last.kind, last.nodes[:2]) == ("runtime_fusion", ("linear_1", "tanh"))


class Tied(nn.Module):
    """An embedding whose weights another layer reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(96, 64)
        self.inner = nn.Linear(64, 64)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.inner(self.embedding(ids)).relu(), self.embedding.weight)


def test_a_product_of_the_weights_of_an_embedding_is_not_the_embedding() -> None:
    steps = program_steps(plan_of(Tied(), torch.randint(0, 96, (2, 16))))
    assert [step.nodes for step in steps if "embedding" in step.nodes and step.is_product] == []
    assert any("linear_1" in step.nodes for step in steps if step.is_product)


def test_results_are_named() -> None:
    assert result_nodes(of_convolutions()) == {"_to_copy_default_5"}
    assert result_nodes(b'"out0:relu.1" is nowhere in a program') == set()


def test_bytes_that_are_no_engine() -> None:
    assert program_steps(b"nothing of that kind") == []


# Text that no engine here has, written as TensorRT-RTX writes it.

HEADER = "\ndescriptors {\n}\nmain {\n label bb1:\n"
SIZES = "shape_main {\n label bb2:\n}\n\x00"


def function(name: str, reads: str, writes: str) -> str:
    return f"  function={{ name={name} fqn={name}_0x1 input_args={{ {reads} }} output_args={{ {writes} }} }}\n"


def product(name: str, reads: str) -> str:
    return f'  fully_connected={{ name="{name}" output={{"__mye9" }} input={{{reads} }} stream=0 }}\n'


def steps_of(*lines: str, own: str = "") -> list[ProgramStep]:
    text = f"{HEADER}{''.join(lines)}}}\n{SIZES}"
    return program_steps((text + (f"{HEADER}{own}}}\n\x00" if own else "")).encode())


def test_a_constant_that_two_steps_read_is_of_neither() -> None:
    shared = function("__myl_Add", '"add/constant_constantHalf"', '"__mye1"')
    assert [step.nodes for step in steps_of(shared, shared)] == [(), ()]
    assert [step.nodes for step in steps_of(shared)] == [("add",)]


@pytest.mark.parametrize(
    ("reads", "nodes"),
    [
        ('"__mye7^deref" "__mye63linear_3/matrix_multiply_3_alpha"', ("linear_3",)),
        ('"relu/activation_output.1" "__mye63_softmax_beta"', ()),
        ('"__mye5$$myelin$$(Unnamed Loop* 0)^lstm/matrix_multiply_25_alpha"', ("lstm",)),
        ('"__mye63linear+linear_1/matrix_multiply_alpha"', ("linear", "linear_1")),
    ],
    ids=["alpha", "an activation and no layer", "in a loop", "merged"],
)
def test_the_factors_of_a_product_name_it(reads: str, nodes: tuple[str, ...]) -> None:
    (step,) = steps_of(product("__mye12", reads))
    assert (step.name, step.is_product, step.nodes) == ("__mye12", True, nodes)


def test_factors_name_products_that_share_them_too() -> None:
    """Those of a loop, which TensorRT unrolls."""
    line = product("__mye12", '"__mye5lstm/matrix_multiply_alpha"')
    assert [step.nodes for step in steps_of(line, line)] == [("lstm",), ("lstm",)]


def test_kernels_find_their_programs_by_their_numbers() -> None:
    fused = '  runtime_fusion={ name=__myl_FcAdd input_args={ "x" } output_args={ "y" } binary=1 stream=0 }\n'
    text = f"{HEADER}{fused}}}\n{SIZES}"
    reads = [f'"__mye2linear_{index}/matrix_multiply_alpha"' for index in (0, 1)]
    own = [f"{HEADER}{product('__mye1', each)}}}\n\x00" for each in reads]
    (step,) = program_steps((text + "".join(own)).encode())
    assert (step.name, step.is_product, step.nodes) == ("__myl_FcAdd", True, ("linear_1",))
    (alone,) = program_steps((text + own[0]).encode())
    assert (alone.is_product, alone.nodes) == (False, ())


def test_steps_that_compute_sizes_are_left_out() -> None:
    line = function("__myl_Add", '"add/constant_constantHalf"', '"__mye1"')
    sizes = "shape_main {\n label bb2:\n" + product("view/shuffle", '"x"') + "}\n\x00"
    assert [step.name for step in program_steps(f"{HEADER}{line}}}\n{sizes}".encode())] == ["__myl_Add"]


def test_two_main_programs_are_read_in_their_order() -> None:
    lines = [function(name, "", '"__mye1"') for name in ("__myl_Add", "__myl_Mul")]
    text = "".join(f"{HEADER}{line}}}\n{SIZES}" for line in lines)
    assert [step.name for step in program_steps(text.encode())] == ["__myl_Add", "__myl_Mul"]


def test_names_that_join_layers() -> None:
    assert nodes_in_name("conv/convolution_nd + relu/activation") == ["conv", "relu"]
    assert nodes_in_name("Reformatting CopyNode for Input Tensor 0 to conv") == []
