"""Partition: which nodes go to TensorRT, as acyclic subgraphs as large as they can be, and which to inductor."""

from torchtrt_bridge.partition.subgraphs import Proposal, Rejection, fuse, propose
from torchtrt_bridge.partition.torch_subgraphs import TORCH_SUBGRAPH_PREFIX, propose_torch_subgraphs

__all__ = ["TORCH_SUBGRAPH_PREFIX", "Proposal", "Rejection", "fuse", "propose", "propose_torch_subgraphs"]
