"""Partition: which nodes go to TensorRT, as acyclic subgraphs as large as they can be."""

from torchtrt_bridge.partition.subgraphs import Proposal, Rejection, fuse, propose

__all__ = ["Proposal", "Rejection", "fuse", "propose"]
