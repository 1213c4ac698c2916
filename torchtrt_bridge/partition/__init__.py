"""Partition: which nodes go to TensorRT, as acyclic subgraphs as large as they can be."""

from torchtrt_bridge.partition.subgraphs import SUBGRAPH_PREFIX, Partition, Rejection, fuse_named, partition

__all__ = ["SUBGRAPH_PREFIX", "Partition", "Rejection", "fuse_named", "partition"]
