"""Training batches: blocks of tokens in an order that a seed and a small state decide, so that a run can resume.

Shapes: B sequences, T tokens a sequence.
"""

import random
from collections.abc import Sequence
from typing import TypedDict

import torch


class StreamState(TypedDict):
    """Where a stream stands: enough to continue it exactly."""

    epoch: int
    cursor: int
    block: int


class BlockStream:
    """Endless batches over documents: each epoch shuffles documents, joins them, cuts blocks and shuffles those."""

    def __init__(self, documents: Sequence[Sequence[int]], *, seed: int) -> None:
        self._documents = documents
        self._seed = seed
        self._epoch = 0
        self._cursor = 0
        self._block = 0
        self._blocks_NT = torch.empty(0, 0, dtype=torch.long)

    def next_batch(self, num_blocks: int, block: int) -> torch.Tensor:
        """The next batch_BT, int64 (num_blocks, block + 1): inputs and, shifted by one, targets."""
        if block != self._block or self._cursor + num_blocks > len(self._blocks_NT):
            self._begin(epoch=self._epoch + 1, block=block)
        batch_BT = self._blocks_NT[self._cursor : self._cursor + num_blocks]
        self._cursor += num_blocks
        return batch_BT

    def state_dict(self) -> StreamState:
        """The position, as plain numbers."""
        return {"epoch": self._epoch, "cursor": self._cursor, "block": self._block}

    def load_state_dict(self, state: StreamState) -> None:
        """Continue where `state` was taken."""
        self._begin(epoch=state["epoch"], block=state["block"])
        self._cursor = state["cursor"]

    def _begin(self, *, epoch: int, block: int) -> None:
        """Lay out one epoch. A random first offset moves the cuts, so blocks differ from epoch to epoch."""
        order = random.Random(f"{self._seed}/{epoch}")
        shuffled = order.sample(range(len(self._documents)), len(self._documents))
        joined = torch.tensor([token for index in shuffled for token in self._documents[index]])
        joined = joined[order.randrange(block) :]
        blocks = joined.unfold(0, block + 1, block)
        self._blocks_NT = blocks[torch.tensor(order.sample(range(len(blocks)), len(blocks)))]
        self._epoch, self._cursor, self._block = epoch, 0, block
