"""The first part: embeddings and the first layers, on the client."""

import torch

from splitlearn_core.cache.part_cache import PartCache
from splitlearn_core.errors import PartInputError
from splitlearn_core.parts.part import HiddenOutput, Part
from splitlearn_core.split.cut import Cut
from splitlearn_core.split.points import SplitPoints


class Bottom(Part):
    """Embeddings and layers `[0, a)`: token ids in, hidden states out."""

    @classmethod
    def cut_for(cls, points: SplitPoints, num_layers: int) -> Cut:
        """Return what a Bottom holds."""
        return Cut.bottom(points, num_layers)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: PartCache | None = None,
        use_cache: bool = False,
    ) -> torch.Tensor | HiddenOutput:
        """Embed tokens and run the first layers.

        Args:
            input_ids: token ids [B, T], int64 or int32.
            attention_mask: [B, P + T], 1 for tokens and 0 for padding; None without padding.
            position_ids: [B, T]; None to go on from the cache.
            past_key_values: what the last call returned; None at first. Changed in place.
            use_cache: return the cache too.

        Returns:
            Hidden states [B, T, H]; with `use_cache` a `HiddenOutput`.

        Raises:
            PartInputError: `input_ids` are not token ids [B, T], or the cache is not of this part.
        """
        if input_ids.dim() != 2 or input_ids.is_floating_point():
            raise PartInputError(
                f"expected token ids [batch, tokens] in int64; got {list(input_ids.shape)} in {input_ids.dtype}"
            )
        cache = self.cache_for(past_key_values, use_cache)
        hidden_BTH = self.run_layers(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, cache=cache
        )
        return hidden_BTH if cache is None or not use_cache else HiddenOutput(hidden_BTH, cache)
