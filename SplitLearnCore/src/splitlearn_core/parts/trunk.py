"""The middle part: the layers that a server holds."""

import torch

from splitlearn_core.cache.part_cache import PartCache
from splitlearn_core.parts.part import HiddenOutput, Part
from splitlearn_core.split.cut import Cut
from splitlearn_core.split.points import SplitPoints


class Trunk(Part):
    """Layers `[a, b)`: hidden states in, hidden states out."""

    @classmethod
    def cut_for(cls, points: SplitPoints, num_layers: int) -> Cut:
        """Return what a Trunk holds."""
        return Cut.trunk(points, num_layers)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: PartCache | None = None,
        use_cache: bool = False,
    ) -> torch.Tensor | HiddenOutput:
        """Run the middle layers.

        Args:
            hidden_states: [B, T, H] in the part's dtype, from the Bottom.
            attention_mask: [B, P + T], 1 for tokens and 0 for padding; None without padding.
            position_ids: [B, T]; None to go on from the cache.
            past_key_values: what the last call returned; None at first. Changed in place.
            use_cache: return the cache too.

        Returns:
            Hidden states [B, T, H]; with `use_cache` a `HiddenOutput`.

        Raises:
            PartInputError: wrong rank, width or dtype, or the cache is not of this part.
        """
        cache = self.cache_for(past_key_values, use_cache)
        hidden_BTH = self.run_layers(
            hidden_BTH=hidden_states, attention_mask=attention_mask, position_ids=position_ids, cache=cache
        )
        return hidden_BTH if cache is None or not use_cache else HiddenOutput(hidden_BTH, cache)
