"""Finding the decoder layers and the embeddings of any Hugging Face decoder."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from splitlearn_core.errors import UnsupportedModelError


class LayerStack(NamedTuple):
    """The decoder layers of a model and their dotted name, `transformer.h` for GPT-2."""

    name: str
    layers: nn.ModuleList


def decoder_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the part of a configuration that describes the text decoder."""
    return config.get_text_config(decoder=True)


def num_decoder_layers(config: PreTrainedConfig) -> int:
    """Return the number of decoder layers that a configuration describes.

    Raises:
        UnsupportedModelError: the configuration does not say.
    """
    num_layers = getattr(decoder_config(config), "num_hidden_layers", None)
    if not isinstance(num_layers, int):
        raise UnsupportedModelError(f"{config.model_type} cannot be cut: its configuration names no number of layers")
    return num_layers


def find_layers(model: PreTrainedModel) -> LayerStack:
    """Find the decoder layers: the outermost list of the right length that holds most parameters.

    Raises:
        UnsupportedModelError: there is no such list.
    """
    num_layers = num_decoder_layers(model.config)
    stacks: list[LayerStack] = []
    for name, module in decoder_modules(model):
        inside_another = any(name.startswith(f"{stack.name}.") for stack in stacks)
        if isinstance(module, nn.ModuleList) and len(module) == num_layers and not inside_another:
            stacks.append(LayerStack(name, module))
    if not stacks:
        raise UnsupportedModelError(
            f"{model.config.model_type} cannot be cut: it has no list of {num_layers} decoder layers"
        )
    return max(stacks, key=lambda stack: num_parameters(stack.layers))


def decoder_modules(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """Iterate over modules and their names, but for those of `encoders`, which have lists of layers too."""
    foreign = tuple(f"{name}." for name, _ in encoders(model))
    return ((name, module) for name, module in model.named_modules() if not f"{name}.".startswith(foreign))


def encoders(model: PreTrainedModel) -> Iterator[tuple[str, PreTrainedModel]]:
    """Iterate over the models inside a model that have another configuration: encoders of images and sound."""
    own_configs = {type(model.config), type(decoder_config(model.config))}
    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel) and type(module.config) not in own_configs:
            yield name, module


def num_parameters(module: nn.Module) -> int:
    """Count the elements of all parameters of a module, tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def parameter_name(model: nn.Module, module: nn.Module | None) -> str | None:
    """Return the full name of a module's `weight`, or None when the module is not part of the model."""
    for name, candidate in model.named_modules(remove_duplicate=False):
        if candidate is module:
            return f"{name}.weight"
    return None


def embedding_width(model: PreTrainedModel) -> int:
    """Return the width of the input embeddings, which is not the hidden size in every family (OPT-350m)."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[-1]


def max_positions(config: PreTrainedConfig) -> int | None:
    """Return the longest sequence in tokens that a model was made for, or None where it has no bound."""
    length = getattr(decoder_config(config), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None
