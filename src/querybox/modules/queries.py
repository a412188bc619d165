"""Object queries: the questions that the decoder asks of the image."""

from __future__ import annotations

import torch
from torch import nn

from querybox.structures import Memory, Queries


class LearnedQueries(nn.Module):
    """The same learned questions for every image: each has a position of its own and starts with no content."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(count, width))

    def forward(self, memory: Memory) -> Queries:
        """Repeat the queries for each image of `memory`."""
        position = self.position.expand(memory.tokens.shape[0], -1, -1)  # [B, Q, D]
        return Queries(content=torch.zeros_like(position), position=position)
