"""Recall: a graph of Dynamo's that was captured before, in this process or another, is read instead of captured."""

from torchtrt_bridge.recall.recall import recalled_or_captured

__all__ = ["recalled_or_captured"]
