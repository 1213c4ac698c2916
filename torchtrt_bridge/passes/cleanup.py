"""Clean: drop the checks that tracing leaves behind; they were made when the graph was traced."""

from __future__ import annotations

import torch
from torch import fx

from torchtrt_bridge.graph.edit import finish
from torchtrt_bridge.options import Options

aten = torch.ops.aten
METADATA = aten._assert_tensor_metadata.default


def drop_metadata_checks(module: fx.GraphModule, options: Options) -> fx.GraphModule:
    """Erase the assertions on dtype and device that each cast brings along."""
    checks = module.graph.find_nodes(op="call_function", target=METADATA)
    for node in checks:
        module.graph.erase_node(node)
    return finish(module, changed=True)
