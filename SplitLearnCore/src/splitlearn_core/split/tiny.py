"""Tiny configurations and random models of any architecture, on which a cut can be tried in a moment.

A tiny configuration keeps what makes its family special (soft-caps, mixes of layer types, experts, tied weights) and
shrinks every number that only makes it big.
"""

from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from splitlearn_core.split.layers import decoder_config
from splitlearn_core.split.tiny_values import EXCEPTIONS, KINDS_OF_LAYERS, SIZES

VOCABULARY_SIZE = 128
"""Enough for every special token and for ties between random logits to be rare."""

WEIGHT_SPREAD = 0.1
"""Standard deviation of random weights: with a width of 32 each layer then changes its input by about as much again."""


def tiny_config(model_type: str, num_layers: int = 6) -> PreTrainedConfig:
    """Return a tiny configuration of a model type of transformers, with the defaults of its family otherwise.

    Raises:
        KeyError: transformers has no such model type.
        Exception: whatever the family's own validation says where the sizes do not suit it.
    """
    return _tiny(CONFIG_MAPPING[model_type], num_layers, {})


def tiny_config_like(config: PreTrainedConfig, num_layers: int = 6) -> PreTrainedConfig:
    """Return a tiny configuration with the features of a given one.

    Raises:
        Exception: whatever the family's own validation says where the sizes do not suit it.
    """
    return _tiny(type(config), num_layers, _features(config, num_layers))


def tiny_model(model: type[PreTrainedModel], config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Build a float32 model on the CPU with random weights that make every layer count; the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = model(config).to(torch.float32).eval()
        randomise(built)
    return built


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Draw all weights anew: matrices around 0, vectors that scale around 1, so that no layer is an identity."""
    for name, parameter in model.named_parameters():
        mean = 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
        parameter.normal_(mean, WEIGHT_SPREAD)


def _tiny(config_class: type[PreTrainedConfig], num_layers: int, given: Mapping[str, Any]) -> PreTrainedConfig:
    sizes = {field.name: value for field in fields(config_class) for value in _tiny_values(field, num_layers)}
    nested = {
        name: _tiny(sub_class, num_layers, given.get(name, {}))
        for name, sub_class in config_class.sub_configs.items()
        if isinstance(sub_class, type) and sub_class is not PreTrainedConfig
    }
    exceptions = EXCEPTIONS.get(config_class.model_type, {})
    return config_class(**{**given, **sizes, **nested, **_for_depth(exceptions, num_layers)})


def _tiny_values(field: "Field[Any]", num_layers: int) -> list[Any]:
    """Return the tiny value of one field, or nothing where the default of the family may stay."""
    if field.name in SIZES:
        return [num_layers if SIZES[field.name] == "num_layers" else SIZES[field.name]]
    if field.name.endswith("_token_id") and isinstance(field.default, int):
        return [3]
    if "drop" in field.name and isinstance(field.default, float):
        return [0.0]
    return []


def _for_depth(values: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    """Cut lists with one entry a layer to the number of layers."""
    return {name: value[:num_layers] if name in KINDS_OF_LAYERS else value for name, value in values.items()}


def _features(config: PreTrainedConfig, num_layers: int) -> dict[str, Any]:
    depth = decoder_config(config).num_hidden_layers
    features: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, PreTrainedConfig):
            value = _features(value, num_layers)
        elif isinstance(value, list) and len(value) == depth:
            value = shortened(value, num_layers)
        features[field.name] = value
    return features


def shortened(kinds: list[Any], num_layers: int) -> list[Any]:
    """Shorten a list with one entry a layer; an entry that only comes later replaces the last ones."""
    kept = kinds[:num_layers]
    missing = [kind for index, kind in enumerate(kinds) if kind not in kept and kinds.index(kind) == index]
    return [*kept[: num_layers - len(missing)], *missing][:num_layers]
