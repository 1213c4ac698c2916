"""Partition: acyclic subgraphs, as large as they can be, for TensorRT and for inductor."""

from torchtrt_bridge.partition.subgraphs import Proposal, Rejection, extract_subgraphs, propose
from torchtrt_bridge.partition.torch_subgraphs import TORCH_SUBGRAPH_PREFIX, propose_torch_subgraphs

__all__ = ["TORCH_SUBGRAPH_PREFIX", "Proposal", "Rejection", "extract_subgraphs", "propose", "propose_torch_subgraphs"]
