"""Partition: which nodes go to TensorRT, as acyclic subgraphs as large as they can be, and which to inductor."""

from torchtrt_bridge.partition.pieces import PIECE_PREFIX, propose_pieces
from torchtrt_bridge.partition.subgraphs import Proposal, Rejection, fuse, propose

__all__ = ["PIECE_PREFIX", "Proposal", "Rejection", "fuse", "propose", "propose_pieces"]
