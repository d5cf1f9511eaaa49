"""A whole model of which there is nothing but the shapes."""

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


def model_without_storage(
    architecture: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    """Make a whole model of a dtype whose parameters have their shapes but one element of memory each."""
    with torch.device("meta"):
        model = architecture(config)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            # Not on the meta device: peft would take its adapters there.
            kind = dtype if parameter.is_floating_point() else parameter.dtype
            whole_shape = torch.zeros((), dtype=kind).expand(parameter.shape)
            setattr(module, name, nn.Parameter(whole_shape, requires_grad=False))
    return model
