"""The proof that sessions may share a forward: steps together against the same steps alone, number by number.

Tensor shapes: B rows, T new tokens, P cached tokens, H hidden size.
"""

from itertools import count
from typing import NamedTuple

import torch

from splitlearn_core.cache.part_cache import PartCache
from splitlearn_core.cache.ragged import AttentionSwitch
from splitlearn_core.engine.batching import Batching, Joining
from splitlearn_core.engine.joined import Share, run_joined
from splitlearn_core.parts.trunk import Trunk
from splitlearn_core.split.parity import TOLERANCE, difference
from splitlearn_core.split.support import first_line

STEPS = (1, 1, 3, 1)
"""Tokens of the steps: several, because the second differs from the first in some caches, and single ones again."""

PROMPT = 21
"""Tokens of the prompt that comes in pieces: over two windows of a tiny model."""

PIECES = (5, 9, 7)
"""Its pieces."""


class Start(NamedTuple):
    """How a session begins."""

    num_rows: int
    num_tokens: int
    num_padding: int
    """Columns of padding before the first row's tokens."""


STARTS = (Start(1, 13, 0), Start(2, 9, 4), Start(1, 3, 0), Start(1, 29, 0))
"""Sessions of different lengths, shorter and longer than the windows of tiny models; one of two rows with padding."""


class Side:
    """One session, played the same way alone and together: its inputs, and a cache for each."""

    def __init__(self, trunk: Trunk, start: Start, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        length = start.num_tokens + sum(STEPS)
        shape = (start.num_rows, length, trunk.hidden_size)
        self.hidden_BLH = torch.randn(shape, generator=generator).to(trunk.device, trunk.dtype)
        mask_BL = torch.ones(shape[:2], dtype=torch.long, device=trunk.device)
        mask_BL[0, : start.num_padding] = 0
        self.mask_BL = mask_BL if start.num_padding else None
        self.positions_BL = (mask_BL.cumsum(-1) - 1).clamp(min=0)
        self.num_tokens = start.num_tokens

    def share(self, cache: PartCache, num_tokens: int) -> Share:
        """Return the inputs of the next tokens after those in a cache."""
        end = cache.position + num_tokens
        new = slice(cache.position, end)
        return Share(
            cache,
            self.hidden_BLH[:, new],
            None if self.mask_BL is None else self.mask_BL[:, :end],
            self.positions_BL[:, new],
        )


@torch.inference_mode()
def try_batching(trunk: Trunk) -> Batching:
    """Find out what is exact for a trunk, best a tiny one with random weights."""
    switch = AttentionSwitch(trunk)
    joining, alone_because = Joining.RAGGED, joining_failure(trunk, switch) if switch.is_possible else "not possible"
    if alone_because is not None:
        joining, alone_because = Joining.PADDED, joining_failure(trunk, None)
    if alone_because is not None:
        joining = Joining.ALONE
    return Batching(joining=joining, alone_because=alone_because, whole_because=chunk_failure(trunk))


@torch.inference_mode()
def joining_failure(trunk: Trunk, switch: AttentionSwitch | None) -> str | None:
    """Say in one clause what is not as alone when sessions share forwards; None when everything is."""
    try:
        worst = _difference_together(trunk, switch)
    except Exception as error:  # an architecture may fail with anything
        return f"a forward that sessions share fails ({first_line(error)})"
    return None if worst <= TOLERANCE else f"hidden states differ by {worst:.1e} of the largest in a shared forward"


def _difference_together(trunk: Trunk, switch: AttentionSwitch | None) -> float:
    sides = [Side(trunk, start, seed) for start, seed in zip(STARTS, count())]
    alone, together = ([_prompted(trunk, side) for side in sides] for _ in range(2))
    worst = 0.0
    for step, num_tokens in enumerate(STEPS):
        # Every time another session is left out, so that sessions join and leave.
        present = [index for index in range(len(sides)) if index != step]
        wanted = [_run(trunk, sides[index].share(alone[index], num_tokens)) for index in present]
        got = run_joined(trunk, [sides[index].share(together[index], num_tokens) for index in present], switch)
        worst = max(worst, *map(difference, got, wanted))
    return worst


@torch.inference_mode()
def chunk_failure(trunk: Trunk) -> str | None:
    """Say in one clause what differs when a prompt comes in chunks; None when nothing does."""
    side = Side(trunk, Start(2, PROMPT, 4), seed=7)
    try:
        whole = _tokens(side, _run(trunk, side.share(trunk.new_cache(), PROMPT)))
        cache = trunk.new_cache()
        pieces = _tokens(side, torch.cat([_run(trunk, side.share(cache, piece)) for piece in PIECES], dim=1))
    except Exception as error:  # an architecture may fail with anything
        return f"a forward over a piece of a prompt fails ({first_line(error)})"
    worst = difference(pieces, whole)
    return None if worst <= TOLERANCE else f"hidden states differ by {worst:.1e} of the largest when it comes in chunks"


def _tokens(side: Side, output_BTH: torch.Tensor) -> torch.Tensor:
    assert side.mask_BL is not None
    return output_BTH[side.mask_BL[:, : output_BTH.shape[1]].bool()]


def _prompted(trunk: Trunk, side: Side) -> PartCache:
    cache = trunk.new_cache()
    _run(trunk, side.share(cache, side.num_tokens))
    return cache


def _run(trunk: Trunk, share: Share) -> torch.Tensor:
    output = trunk(share.hidden_RTH, share.mask_RK, share.position_ids_RT, past_key_values=share.cache)
    assert isinstance(output, torch.Tensor)
    return output
