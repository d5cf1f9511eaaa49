"""Splitting many models in one way, and seeing beforehand what each side would hold."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from splitlearn_core.checkpoint.source import Source, locate
from splitlearn_core.parts.attention import best_attention
from splitlearn_core.parts.classes import architecture_of
from splitlearn_core.parts.load import load_parts
from splitlearn_core.parts.load_piece import SplitConfig, read_config
from splitlearn_core.split.cut_copy import SplitResult, cut_apart
from splitlearn_core.split.layers import num_decoder_layers, num_parameters
from splitlearn_core.split.points import SplitPoints, resolve_split_points
from splitlearn_core.split.split_model import split_model
from splitlearn_core.split.support import check_supported


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """What each part of a model would hold, found out without reading a weight."""

    model_type: str
    """Model type in transformers."""
    num_layers: int
    """Number of decoder layers of the whole model."""
    split_points: SplitPoints
    """Cut points."""
    whole_parameters: int
    """Parameters of the whole model, tied ones once."""
    bottom_parameters: int
    """Parameters of the Bottom."""
    trunk_parameters: int
    """Parameters of the Trunk."""
    top_parameters: int
    """Parameters of the Top; an embedding that is tied to the head counts here too."""


class ModelSplitter:
    """Splits models at the cut points, on the device and in the dtype of one configuration."""

    def __init__(self, config: SplitConfig | None = None) -> None:
        self.config = config or SplitConfig()

    def plan(self, model_id: str, revision: str | None = None) -> SplitPlan:
        """Say what each part of a checkpoint would hold; reads its configuration only.

        Raises:
            CheckpointError: no such checkpoint.
            SplitPointError: cut points out of order or out of range.
            UnsupportedModelError: the model cannot be cut exactly.
        """
        config = read_config(locate(model_id, revision))
        check_supported(config)
        points = resolve_split_points(self.config.split_points, num_decoder_layers(config))
        with torch.device("meta"):
            whole = architecture_of(config)(config)
        parts = cut_apart(whole, points)
        return SplitPlan(
            model_type=config.model_type,
            num_layers=num_decoder_layers(config),
            split_points=points,
            whole_parameters=num_parameters(whole),
            bottom_parameters=num_parameters(parts.bottom),
            trunk_parameters=num_parameters(parts.trunk),
            top_parameters=num_parameters(parts.top),
        )

    def load(self, model_id: str, revision: str | None = None) -> SplitResult:
        """Load the three parts of a checkpoint; errors as in `load_part`."""
        return load_parts(locate(model_id, revision), self.config)

    def split(self, model: PreTrainedModel) -> SplitResult:
        """Cut a model that is in memory; device and dtype stay the model's. Errors as in `split_model`."""
        return split_model(model, self.config.split_points)


class ModelFactory:
    """A thin name over `load_split_model`, for those who look for a factory."""

    @staticmethod
    def create(
        model_id: str,
        split_points: tuple[int, int] | list[int] | None = None,
        use_flash_attention: bool = True,
        **options: Any,
    ) -> SplitResult:
        """Load the three parts of a checkpoint.

        Args:
            model_id: `"builtin"`, a local directory in Hugging Face format, or a hub id.
            split_points: `(a, b)`; None for the default.
            use_flash_attention: run with the first of FlashAttention-2, SDPA and eager that can be had here, and log
                why none before it; False for eager.
            options: the other fields of `SplitConfig`; an `attn_implementation` is taken as it is.

        Raises:
            CheckpointError, SplitPointError, UnsupportedModelError: as in `load_part`.
            TypeError: an unknown option.
        """
        split = SplitConfig(**{"split_points": split_points, "attn_implementation": None, **options})
        source = locate(model_id)
        if split.attn_implementation is None:
            split = replace(split, attn_implementation=ModelFactory._attention(source, split, use_flash_attention))
        return load_parts(source, split)

    @staticmethod
    def _attention(source: Source, split: SplitConfig, use_flash_attention: bool) -> str | dict[str, str]:
        if not use_flash_attention:
            return "eager"
        config = read_config(source)
        return best_attention(architecture_of(config), config, split.device, split.dtype)
