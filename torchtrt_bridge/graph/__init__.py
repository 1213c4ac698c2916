"""Ground for FX graphs: edits, nodes, shapes, the custom operators, and every private name of PyTorch."""
