"""Activations of neural networks."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.lower.case import Case, Rejected
from tests.lower.cases.pointwise import SMALL, numbers

aten = torch.ops.aten


def signed(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3, 5) * 4,)


def far(n: int) -> tuple[torch.Tensor]:
    """Arguments at which exponentials overflow in fp32, and at which they overflow in fp16 only."""
    return (torch.tensor([-200.0, -90.0, -15.0, -1.0, 0.0, 1.0, 9.0, 11.0, 15.0, 19.0, 21.0, 200.0]).repeat(n, 1),)


def slopes(count: int, *shape: int) -> Case:
    module = nn.PReLU(count)
    nn.init.uniform_(module.weight, -1, 1)
    return Case(aten._prelu_kernel.default, module, lambda n: (torch.randn(n, *shape),), name=f"{count}_of_{shape}")


CASES: list[Case] = [
    Case(aten.relu.default, torch.relu, signed),
    Case(aten.relu.default, torch.relu, lambda n: (torch.randint(-9, 9, (n, 3)),), name="int64", half=False),
    Case(aten.relu.default, lambda x: F.relu(x, inplace=True), signed, name="inplace"),
    Case(aten.sigmoid.default, torch.sigmoid, signed),
    Case(
        aten.sigmoid.default,
        torch.sigmoid,
        lambda n: (torch.randint(-9, 9, (n, 3)),),
        name="int64",
        half=False,
    ),
    Case(aten.sigmoid.default, torch.sigmoid, far, name="far"),
    Case(aten.tanh.default, torch.tanh, signed),
    Case(aten.tanh.default, torch.tanh, lambda n: (torch.randn(n, 3) > 0,), name="bool", half=False),
    Case(aten.leaky_relu.default, F.leaky_relu, signed),
    Case(aten.leaky_relu.default, lambda x: F.leaky_relu(x, 0.2), signed, name="slope"),
    Case(aten.rrelu.default, F.rrelu, signed),
    slopes(1, 6),
    slopes(6, 6),
    slopes(6, 6, 5),
    slopes(6, 6, 5, 4),
    slopes(1, 6, 5, 4),
    Case(aten._prelu_kernel.default, lambda x: F.prelu(x[0, 0, 0], x.new_full((), 0.3)), signed, name="0d"),
    Case(aten._prelu_kernel.default, lambda x: F.prelu(x, x[0, :, 0]), signed, name="computed"),
    Case(aten.gelu.default, F.gelu, signed),
    Case(aten.gelu.default, lambda x: F.gelu(x, approximate="tanh"), signed, name="tanh"),
    Case(aten.silu.default, F.silu, signed),
    Case(aten.silu.default, F.silu, far, name="far"),
    Case(aten.mish.default, F.mish, signed),
    Case(aten.mish.default, F.mish, far, name="far"),
    Case(aten.hardsigmoid.default, F.hardsigmoid, signed),
    Case(aten.hardswish.default, F.hardswish, signed),
    Case(aten.elu.default, F.elu, signed),
    Case(aten.elu.default, lambda x: F.elu(x, 0.3), signed, name="alpha"),
    Case(aten.elu.default, lambda x: aten.elu(x, 0.5, 2.0, 3.0), signed, name="scales"),
    Case(aten.elu.default, lambda x: aten.elu(x, 0.5, 2.0, -0.5), signed, name="mirrored"),
    Case(aten.elu.default, F.selu, signed, name="selu"),
    Case(aten.celu.default, F.celu, signed),
    Case(aten.celu.default, lambda x: F.celu(x, 0.4), signed, name="alpha"),
    Case(aten.celu.default, lambda x: F.celu(x, -1.5), signed, name="mirrored"),
    Case(aten.celu.default, lambda x: F.celu(x, 0.7), far, name="far"),
    Case(aten.celu.default, F.celu, numbers, name="numbers"),
    Case(aten.where.self, lambda x: F.softshrink(x, 2.0), numbers, name="softshrink"),
    Case(aten.softplus.default, F.softplus, signed),
    Case(aten.softplus.default, F.softplus, far, name="far"),
    Case(aten.softplus.default, lambda x: F.softplus(x, 2.5, 3), signed, name="threshold"),
    Case(aten.log_sigmoid.default, F.logsigmoid, signed),
    Case(aten.log_sigmoid.default, F.logsigmoid, far, name="far"),
    Case(aten.log_sigmoid.default, F.logsigmoid, lambda n: (-torch.rand(n, 9) * 5 - 8,), name="small", **SMALL),
    # Functions that PyTorch itself takes apart.
    Case(aten.div.Tensor, F.softsign, signed, name="softsign"),
    Case(aten.tanh.default, F.tanhshrink, signed, name="tanhshrink"),
    Case(aten.sigmoid.default, lambda x: F.glu(x.repeat(1, 2, 1), 1), signed, name="glu"),
]

REJECTED: list[Rejected] = [
    Rejected(aten.rrelu.default, lambda x: F.rrelu(x, training=True), signed, "random slopes"),
]
