"""The last part: the last layers, the final norm and the head, on the client."""

import torch

from splitlearn_core.cache.part_cache import PartCache
from splitlearn_core.parts.part import LogitsOutput, Part
from splitlearn_core.split.cut import Cut
from splitlearn_core.split.points import SplitPoints


class Top(Part):
    """Layers `[b, n)`, the final norm and the LM head: hidden states in, logits out."""

    @classmethod
    def cut_for(cls, points: SplitPoints, num_layers: int) -> Cut:
        """Return what a Top holds."""
        return Cut.top(points, num_layers)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: PartCache | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> torch.Tensor | LogitsOutput:
        """Run the last layers and the head.

        Args:
            hidden_states: [B, T, H] in the part's dtype, from the Trunk.
            attention_mask: [B, P + T], 1 for tokens and 0 for padding; None without padding.
            position_ids: [B, T]; None to go on from the cache.
            past_key_values: what the last call returned; None at first. Changed in place.
            use_cache: return the cache too.
            logits_to_keep: compute logits for the last so many tokens only; 0 for all.

        Returns:
            Logits [B, T, V]; with `use_cache` a `LogitsOutput`.

        Raises:
            PartInputError: wrong rank, width or dtype, or the cache is not of this part.
        """
        cache = self.cache_for(past_key_values, use_cache)
        output = self.run_layers(
            hidden_BTH=hidden_states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            logits_to_keep=logits_to_keep or None,
        )
        logits_BTV: torch.Tensor = output.logits
        return logits_BTV if cache is None or not use_cache else LogitsOutput(logits_BTV, cache)
