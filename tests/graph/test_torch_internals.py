"""Each private name of PyTorch that this package uses is there, and does what its function here says."""

from __future__ import annotations

import copy
import operator
import pickle
import threading

import pytest
import sympy
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from torchtrt_bridge.graph import torch_internals

aten = torch.ops.aten

# Operators, fake values and symbolic sizes -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graph() -> torch.fx.Graph:
    """The graph of a linear layer whose batch size is symbolic, and of a result whose size depends on data."""

    class Model(nn.Module):
        def forward(self, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return nn.functional.linear(x, weight), x.nonzero()

    shapes = ({0: torch.export.Dim("n", min=2, max=64)}, None)
    return torch.export.export(Model(), (torch.randn(4, 3), torch.randn(5, 3)), dynamic_shapes=shapes).graph


def value_of(graph: torch.fx.Graph, op: object) -> torch.Tensor:
    (node,) = graph.find_nodes(op="call_function", target=op)
    value: torch.Tensor = node.meta["val"]
    return value


def test_operators_and_their_schemas() -> None:
    assert torch_internals.is_operator(aten.add.Tensor)
    assert not torch_internals.is_operator(operator.add)
    assert torch_internals.schema_of(aten.add.Tensor).name == "aten::add"
    assert torch_internals.schema_of(operator.add) is None


def test_the_fake_mode_of_a_graph_computes_with_its_symbolic_sizes(graph: torch.fx.Graph) -> None:
    value = value_of(graph, aten.linear.default)
    mode = torch_internals.fake_mode_of_values([value])
    assert mode is torch_internals.fake_mode_of_values([torch.ones(1), value])
    inputs = [node.meta["val"] for node in graph.find_nodes(op="placeholder")]
    with torch_internals.symbolic_dispatch(mode):
        result = aten.linear.default(*inputs)
    assert isinstance(result.shape[0], torch.SymInt)
    assert result.shape[0] == value.shape[0]


def test_without_a_fake_value_the_mode_is_new_and_takes_real_tensors() -> None:
    mode = torch_internals.fake_mode_of_values([torch.ones(2)])
    with torch_internals.symbolic_dispatch(mode):
        result = torch.ones(2) + torch.ones(3, 1)
    assert result.shape == (3, 2)
    assert torch_internals.fake_mode_of_values([result]) is mode


def test_conditions_on_symbolic_sizes(graph: torch.fx.Graph) -> None:
    size = value_of(graph, aten.linear.default).shape[0]
    assert torch_internals.statically_known_true(size >= 2)
    assert not torch_internals.statically_known_true(size == 4)
    assert torch_internals.statically_known_true(True)


def test_sizes_that_depend_on_data(graph: torch.fx.Graph) -> None:
    assert torch_internals.has_unbacked_symbols(value_of(graph, aten.nonzero.default))
    assert not torch_internals.has_unbacked_symbols(value_of(graph, aten.linear.default))


def test_symbols_of_sizes_that_depend_on_data(graph: torch.fx.Graph) -> None:
    found = [value_of(graph, op).shape[0].node.expr for op in (aten.nonzero.default, aten.linear.default)]
    assert [torch_internals.is_unbacked_symbol(symbol) for symbol in found] == [True, False]


def test_sizes_that_are_inferred_anew_are_the_old_ones(graph: torch.fx.Graph) -> None:
    (node,) = graph.find_nodes(op="call_function", target=aten.nonzero.default)
    mode = torch_internals.fake_mode_of_values([node.meta["val"]])
    with torch_internals.symbolic_dispatch(mode):
        value = aten.nonzero.default(node.args[0].meta["val"])
        torch_internals.rebind_unbacked(mode, node, value)
    assert value.shape[0].node.expr == node.meta["val"].shape[0].node.expr


def test_a_trace_that_ends_at_a_number_of_run_time() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * int(x.max().item())

    with pytest.raises(Exception, match="data-dependent") as caught:
        torch.export.export(Model(), (torch.ones(2),), strict=False)
    assert torch_internals.is_data_dependent(caught.value)
    assert not torch_internals.is_data_dependent(ValueError("data-dependent"))


def test_a_size_that_depends_on_data_may_be_one() -> None:
    with torch.library._scoped_library("torchtrt_bridge_test", "DEF") as library:
        library.define("some(Tensor x) -> Tensor")
        library.impl("some", lambda x: x[:1], "CPU")

        @torch.library.register_fake("torchtrt_bridge_test::some", lib=library)
        def some(x: torch.Tensor) -> torch.Tensor:
            return x.new_empty(torch.library.get_ctx().create_unbacked_symint())

        class Model(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                result: torch.Tensor = torch.ops.torchtrt_bridge_test.some(x)
                return result

        with torch_internals.sizes_from_zero():
            program = torch.export.export(Model(), (torch.ones(3),))
    assert {int(value.lower) for value in program.range_constraints.values()} == {0}


def test_contiguous_tensors_with_symbolic_sizes(graph: torch.fx.Graph) -> None:
    value = value_of(graph, aten.linear.default)
    assert torch_internals.is_contiguous_or_false(value)
    assert not torch_internals.is_contiguous_or_false(value.t())


def test_bounds_of_an_expression(graph: torch.fx.Graph) -> None:
    expression = (2 * value_of(graph, aten.linear.default).shape[0] + 1).node.expr
    (symbol,) = expression.free_symbols
    assert torch_internals.expression_bounds(expression, {symbol: (2, 64)}) == (5, 129)


# Code generation -----------------------------------------------------------------------------------------------------


class ReadsBuffers(torch.fx.Tracer):
    """A tracer of modules whose buffers stay nodes of the graph."""

    proxy_buffer_attributes = True


def test_a_flat_graph_is_called_with_nested_arguments() -> None:
    module = torch.fx.symbolic_trace(lambda a, b: (a - b,))
    _, in_spec = pytree.tree_flatten((({"a": 0, "b": 0},), {}))
    _, out_spec = pytree.tree_flatten([0])
    module.graph.set_codegen(torch_internals.pytree_codegen(["pair"], in_spec, out_spec))
    module.recompile()
    assert module({"a": 3, "b": 1}) == [2]
    twin = torch.fx.symbolic_trace(lambda a, b: (a - b,))
    twin.graph.set_codegen(torch_internals.codegen_from_info(torch_internals.pytree_info(module.graph)))
    twin.recompile()
    assert twin({"a": 3, "b": 1}) == [2]


class Shifted(nn.Module):
    """A sum with a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.shift.abs()


def test_the_tracer_of_a_pickled_graph() -> None:
    module = Shifted()
    traced = torch.fx.GraphModule(module, ReadsBuffers().trace(module))
    for node in traced.graph.nodes:
        node.type = None  # torch 2.11 does not pickle annotations that are strings, as those of this file
    traced.recompile()
    torch_internals.set_tracer(traced, ReadsBuffers)
    again = pickle.loads(pickle.dumps(traced))
    assert again.graph.find_nodes(op="call_method", target="abs")


# Capture -----------------------------------------------------------------------------------------------------------


def test_what_a_trace_patches_is_patched_for_its_own_thread() -> None:
    module, seen = nn.ReLU(), []
    own = torch.nn.Module.__call__

    def traced(self: nn.Module, *args: object) -> object:
        seen.append(self)
        return own(self, *args)

    with torch_internals.tracing_lock():
        patcher = torch.fx._symbolic_trace._Patcher()
        with patcher:
            patcher.patch_method(nn.Module, "__call__", traced)
            other = threading.Thread(target=module, args=(torch.ones(1),))
            other.start()
            other.join()
            assert not seen
            module(torch.ones(1))
    assert seen == [module]
    assert torch.nn.Module.__call__ is own


def test_namespaces_of_operators() -> None:
    found = [torch_internals.operator_namespace(target) for target in (aten.add.Tensor, aten.add, operator.add)]
    assert found == ["aten", "aten", None]
    assert torch_internals.operator_namespace(torch.ops.higher_order.cond) == "higher_order"


def test_placeholders_of_a_graph_of_dynamo() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(module)
        return module

    layer, fixed = nn.Linear(3, 2), torch.randn(2)
    layer.register_buffer("shift", torch.randn(2))
    torch._dynamo.mark_static_address(fixed)  # as the caches of transformers
    call = torch.compile(lambda x, y, k: (layer(x) + layer.shift + y) * k, backend=keep, dynamic=True)
    call(torch.randn(4, 3), fixed, 7)
    placeholders = graphs[0].graph.find_nodes(op="placeholder")
    is_state = {torch_internals.source_name(node): torch_internals.is_module_state(node) for node in placeholders}
    assert not is_state["L['x']"]
    assert not is_state["L['y']"]
    assert not is_state["L['k']"]
    assert sum(is_state.values()) == 3  # the weight, the bias and the buffer


def test_names_of_operators_on_graphs() -> None:
    assert torch_internals.higher_order_name(torch.ops.higher_order.cond) == "cond"
    assert torch_internals.higher_order_name(aten.add.Tensor) == ""


def test_the_ends_of_a_region_of_autocast() -> None:
    seen: list[object] = []

    def backend(module: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        seen.extend(node.target for node in module.graph.nodes)
        return module

    def region(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu"):
            return x @ x

    torch.compile(region, backend=backend)(torch.ones(2, 2))
    assert set(torch_internals.autocast_calls()) <= set(seen)


def test_a_view_without_its_base() -> None:
    base = torch.zeros(3, 4)
    view = base[:, :2]
    alone = torch_internals.without_base(view)
    assert alone._base is None
    assert (alone.shape, alone.stride(), alone.data_ptr()) == (view.shape, view.stride(), view.data_ptr())
    assert torch_internals.without_base(base) is base


def test_tensors_that_share_storage() -> None:
    value = torch.arange(4)
    assert torch_internals.storage_id(value) == torch_internals.storage_id(value[1:])
    assert torch_internals.storage_id(value) != torch_internals.storage_id(value.clone())
    with torch_internals.new_export_mode():
        fake = torch.empty(4)
        assert torch_internals.storage_id(fake) == torch_internals.storage_id(fake[1:])


def test_modes_that_look_at_each_operator() -> None:
    before = torch_internals.mode_counts()
    with torch_internals.new_export_mode():
        assert torch_internals.mode_counts() == [before[0], before[1] + 1]


def test_a_digest_of_the_settings_of_functorch() -> None:
    assert torch_internals.functorch_settings() == torch_internals.functorch_settings() != ""


def test_a_restricted_dynamic_size_is_a_constraint_violation() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(4, 3) + 1

    shapes = ({0: torch.export.Dim("n", min=2, max=8)},)
    with pytest.raises(Exception, match="n") as caught:
        torch.export.export(Fixed(), (torch.randn(4, 3),), dynamic_shapes=shapes)
    assert torch_internals.is_constraint_violation(caught.value)
    assert not torch_internals.is_constraint_violation(ValueError("n"))


def test_extrema_of_sympy_simplify() -> None:
    from torch.utils._sympy.functions import Min

    size = sympy.Symbol("s", integer=True, positive=True)
    expression = sympy.Eq(Min(8 * size, 16 * size, evaluate=False), 8 * size, evaluate=False)
    assert torch_internals.with_sympy_extrema(expression) == sympy.true


def test_an_exported_program_with_another_state() -> None:
    program = torch.export.export(Shifted(), (torch.randn(2),))
    torch_internals.set_state_dict(program, {**program.state_dict, "more": torch.ones(1)})
    assert set(program.state_dict) == {"shift", "more"}


# Calls of modules and processes ------------------------------------------------------------------------------------


def test_the_call_of_a_module() -> None:
    module = nn.ReLU()
    assert torch_internals.uncompiled_call(module)(-torch.ones(1)).item() == 0
    assert torch_internals.compiled_call(module) is None
    torch_internals.set_compiled_call(module, lambda x: x + 7)
    assert module(torch.ones(1)).item() == 8
    assert torch_internals.compiled_call(copy.copy(module)) is None
    torch_internals.set_compiled_call(module, None)
    assert module(-torch.ones(1)).item() == 0
    assert torch_internals.compiled_call(len) is None


def test_sizes_that_stay_symbolic() -> None:
    shape = {"x": {0: torch.export.Dim("n", min=2, max=9)}}
    program = torch.export.export(nn.ReLU(), (torch.randn(4, 3),), dynamic_shapes={"input": shape["x"]})
    value = next(node for node in program.graph.nodes if node.op == "output").args[0][0].meta["val"]
    with torch_internals.sizes_unread([value]):
        assert value.shape[1] == 3
        assert value.shape[0] > 1  # by its range
        with pytest.raises(torch_internals.SizeGuardError):
            int(value.shape[0])
        with torch_internals.sizes_unread([value]), pytest.raises(torch_internals.SizeGuardError):
            assert value.shape[0] == 4
    with torch_internals.sizes_unread([torch.randn(2), None]):
        pass
    assert int(value.shape[0]) == 4


def test_hooks_of_a_module() -> None:
    module = nn.ReLU()
    module.register_forward_hook(lambda *_: torch.zeros(1))
    hooks = torch_internals.forward_hooks(module)
    assert module(torch.ones(1)).item() == 0
    for key in list(hooks):
        del hooks[key]
    assert module(torch.ones(1)).item() == 1


def test_a_process_that_was_not_forked() -> None:
    assert not torch_internals.is_fork_of_cuda_process()


# The context of a call ---------------------------------------------------------------------------------------------


def test_transforms_are_noticed() -> None:
    seen: list[bool] = []

    def looking(x: torch.Tensor) -> torch.Tensor:
        seen.append(torch_internals.is_transformed())
        return x.sin()

    looking(torch.ones(2))
    torch.func.vmap(looking)(torch.ones(2, 2))
    with forward_ad.dual_level():
        looking(torch.ones(2))
    assert seen == [False, True, True]


def test_autocast_is_noticed_and_disabled() -> None:
    assert not torch_internals.is_any_autocast_enabled()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch_internals.is_any_autocast_enabled()
        with torch_internals.autocast_disabled():
            assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32


def test_tracing_can_be_disabled() -> None:
    with torch_internals.tracing_disabled():
        assert torch.export.export(nn.ReLU(), (torch.ones(2),)).graph.nodes


# CUDA --------------------------------------------------------------------------------------------------------------


def test_many_tensors_are_copied() -> None:
    targets, sources = [torch.zeros(2), torch.zeros(3, dtype=torch.int64)], [torch.ones(2), torch.arange(3)]
    torch_internals.copy_all(targets, sources)
    torch.testing.assert_close(targets, sources)


def test_the_uses_of_a_storage_are_counted() -> None:
    value = torch.ones(4)
    (storage,) = torch_internals.storages_of([value, value[1:]])
    before = torch_internals.use_count(storage)
    view = value[:2]
    assert torch_internals.use_count(storage) == before + 1
    del view
    assert torch_internals.use_count(storage) == before


@pytest.mark.gpu
def test_the_current_stream_and_the_workspaces_of_cublas() -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        assert torch_internals.current_raw_stream(stream.device.index) == stream.cuda_stream
    torch_internals.clear_cublas_workspaces()


# Inductor ----------------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("tuned", [False, True])
def test_inductor_compiles_a_graph(tuned: bool) -> None:
    x = torch.randn(3)
    module = torch.fx.symbolic_trace(lambda x: (x.sin() * 2,))
    compiled = torch_internals.compile_with_inductor(module, [x], tuned)
    torch.testing.assert_close(compiled(x)[0], x.sin() * 2)
