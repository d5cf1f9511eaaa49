"""Tiny configurations and random models of any architecture, on which a cut can be tried in a moment.

A tiny configuration keeps what makes its family special (soft-caps, mixes of layer types, experts, tied weights) and
shrinks every number that only makes it big.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from splitlearn_core.parts.classes import causal_classes, takes_text_part
from splitlearn_core.split.layers import num_decoder_layers
from splitlearn_core.split.tiny_values import DEPTH, EXCEPTIONS, OTHER_TOKEN, SIZES, WHERE_THERE_IS

WEIGHT_SPREAD = 0.1
"""Standard deviation of random weights: with a width of 32 each layer then changes its input by about as much again."""


def tiny_config(model_type: str, num_layers: int = 6) -> PreTrainedConfig:
    """Return a tiny configuration of a model type of transformers, with the defaults of its family otherwise.

    Raises:
        KeyError: transformers has no such model type.
        Exception: whatever the family's own validation says where the sizes do not suit it.
    """
    config_class = CONFIG_MAPPING[model_type]
    if any(takes_text_part(config_class, architecture) for architecture in causal_classes(config_class)[:1]):
        config_class = config_class.sub_configs["text_config"]
    return default_tiny_config(config_class, num_layers)


def default_tiny_config(config_class: type[PreTrainedConfig], num_layers: int = 6) -> PreTrainedConfig:
    """Return a tiny configuration of a class, also of one that transformers does not know.

    Raises:
        Exception: whatever the family's own validation says where the sizes do not suit it.
    """
    return _tiny(config_class, num_layers, {})


def tiny_config_like(config: PreTrainedConfig, num_layers: int = 6) -> PreTrainedConfig:
    """Return a tiny configuration with the features of a given one.

    Raises:
        Exception: whatever the family's own validation says where the sizes do not suit it.
    """
    return _tiny(type(config), num_layers, _features(config, num_layers))


def tiny_model(architecture: type[PreTrainedModel], config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Build a float32 model on the CPU with random weights that make every layer count; the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = architecture(config)
        model.float()
        randomise(model)
    model.eval()
    return model


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Draw all weights anew: matrices around 0, vectors that scale around 1, so that no layer is an identity."""
    for name, parameter in model.named_parameters():
        mean = 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
        parameter.normal_(mean, WEIGHT_SPREAD)


def _tiny(config_class: type[PreTrainedConfig], num_layers: int, given: Mapping[str, Any]) -> PreTrainedConfig:
    defaults = arguments(config_class)
    values = {**given}
    for name, default in defaults.items():
        values.update(_tiny_value(name, default))
    for name, sub_class in nested_classes(config_class).items():
        values[name] = _tiny(sub_class, num_layers, given.get(name, {}))
    for name, replacements in WHERE_THERE_IS.items():
        values.update(replacements if name in defaults else {})
    values.update(EXCEPTIONS.get(config_class.model_type, {}))
    return config_class(**{name: _for_depth(value, num_layers) for name, value in values.items()})


def arguments(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """Return the arguments of a class of configurations with their defaults."""
    return {name: parameter.default for name, parameter in inspect.signature(config_class).parameters.items()}


def _tiny_value(name: str, default: object) -> dict[str, Any]:
    """Return the tiny value of one argument, or nothing where the default of the family may stay."""
    if name in SIZES:
        return {name: SIZES[name]}
    if name.endswith("_token_id") and isinstance(default, int):
        return {name: OTHER_TOKEN}
    if "drop" in name and isinstance(default, float):
        return {name: 0.0}
    return {}


def _for_depth(value: Any, num_layers: int) -> Any:
    if value is DEPTH:
        return num_layers
    return value(num_layers) if callable(value) else value


def nested_classes(config_class: type[PreTrainedConfig]) -> dict[str, type[PreTrainedConfig]]:
    """Return the classes of the configurations inside a configuration, by the name of the argument."""
    classes = {name: _nested_class(config_class, name) for name in config_class.sub_configs}
    return {name: found for name, found in classes.items() if found is not None}


def _nested_class(config_class: type[PreTrainedConfig], name: str) -> type[PreTrainedConfig] | None:
    found: type[Any] = config_class.sub_configs[name]
    if issubclass(found, PreTrainedConfig):
        return found
    # The class depends on a model type; only newer versions of transformers say which one is the default.
    spec = getattr(config_class, "sub_configs_defaults", {}).get(name)
    model_type = str(getattr(spec, "model_type", None))
    # This mapping imports on look-up, and its `get` does not.
    return CONFIG_MAPPING[model_type] if model_type in CONFIG_MAPPING else None  # noqa: SIM401


def _features(config: PreTrainedConfig, num_layers: int) -> dict[str, Any]:
    own = set(arguments(type(config))) - set(arguments(PreTrainedConfig))
    depth = num_decoder_layers(config)
    features: dict[str, Any] = {}
    for name in own:
        value = getattr(config, name, None)
        if isinstance(value, PreTrainedConfig):
            value = _features(value, num_layers) if name in nested_classes(type(config)) else value
        elif isinstance(value, list) and len(value) == depth:
            value = shortened(value, num_layers)
        features[name] = value
    return features


def shortened(kinds: list[Any], num_layers: int) -> list[Any]:
    """Shorten a list with one entry a layer; kinds that only come later replace the last entries."""
    kept = kinds[:num_layers]
    missing = [kind for index, kind in enumerate(kinds) if kind not in kept and kinds.index(kind) == index]
    return [*kept[: max(0, num_layers - len(missing))], *missing][:num_layers]
