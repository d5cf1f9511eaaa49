"""One forward over tokens of several sessions: their inputs put together, the outputs handed back.

Tensor shapes: B rows of all sessions, T new tokens, P tokens in the longest cache, H hidden size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from splitlearn_core.cache.part_cache import PartCache
from splitlearn_core.cache.ragged import AttentionSwitch
from splitlearn_core.cache.rows import RowsCache
from splitlearn_core.parts.trunk import Trunk


class Share(NamedTuple):
    """What one session brings to a forward; all tensors on the trunk's device."""

    cache: PartCache
    """Its cache, with tokens in it."""
    hidden_RTH: torch.Tensor
    """[R, T, H]; T is the same for all sessions of a forward."""
    mask_RK: torch.Tensor | None
    """[R, cached + T], or None without padding."""
    position_ids_RT: torch.Tensor
    """[R, T]."""


def run_joined(trunk: Trunk, shares: Sequence[Share], switch: AttentionSwitch | None) -> list[torch.Tensor]:
    """Run the tokens of several sessions through the layers at once.

    Args:
        trunk: the part.
        shares: one for each session, with equal T.
        switch: turns ragged attention on; None to pad keys and values together.

    Returns:
        Hidden states [R, T, H] of each session.

    Raises:
        Exception: whatever a forward raises; every session is then as it was before.
    """
    rows = RowsCache([share.cache for share in shares], is_ragged=switch is not None)
    try:
        inputs = {
            "hidden_BTH": torch.cat([share.hidden_RTH for share in shares]),
            "attention_mask": joined_mask(shares, rows.position),
            "position_ids": torch.cat([share.position_ids_RT for share in shares]),
        }
        if switch is None:
            output_BTH: torch.Tensor = trunk.run_layers(cache=rows, **inputs)
        else:
            with switch.ragged():
                output_BTH = trunk.run_layers(cache=rows, **inputs)
    except BaseException:
        rows.roll_back()
        raise
    return list(output_BTH.split_with_sizes([len(share.hidden_RTH) for share in shares]))


def joined_mask(shares: Sequence[Share], cached_len: int) -> torch.Tensor | None:
    """Return the mask [B, P + T] of left-padded sessions; None where there is no padding at all."""
    if all(share.mask_RK is None and share.cache.position == cached_len for share in shares):
        return None
    num_tokens = shares[0].hidden_RTH.shape[1]
    num_rows = sum(len(share.hidden_RTH) for share in shares)
    mask_BK = torch.zeros(num_rows, cached_len + num_tokens, dtype=torch.long, device=shares[0].hidden_RTH.device)
    begin = 0
    for share in shares:
        rows = mask_BK[begin : begin + len(share.hidden_RTH), cached_len - share.cache.position :]
        rows.copy_(torch.ones_like(rows) if share.mask_RK is None else share.mask_RK)
        begin += len(share.hidden_RTH)
    return mask_BK
