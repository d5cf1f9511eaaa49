"""Making the class of a part: one of ours in front of an architecture's own."""

import inspect
from typing import Any, TypeVar

from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from splitlearn_core.errors import UnsupportedModelError
from splitlearn_core.parts.part import CutModel
from splitlearn_core.split.layers import num_decoder_layers
from splitlearn_core.split.points import SplitPoints

CutModelT = TypeVar("CutModelT", bound=CutModel)


def causal_classes(config_class: type[PreTrainedConfig]) -> list[type[PreTrainedModel]]:
    """Return the causal language model classes of a class of configurations, the usual one first; often none."""
    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(config_class, None)
    return [c for c in (found if isinstance(found, tuple) else (found,)) if c]


def architecture_of(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the causal language model class of a configuration.

    Raises:
        UnsupportedModelError: transformers has none for it.
    """
    classes = causal_classes(type(config)) or _classes_of_text_part(type(config))
    if not classes:
        raise UnsupportedModelError(
            f"{config.model_type} cannot be cut: transformers has no causal language model of this type"
        )
    named = [c for c in classes if c.__name__ in (config.architectures or ())]
    return (named or classes)[0]


def _classes_of_text_part(config_class: type[PreTrainedConfig]) -> list[type[PreTrainedModel]]:
    """Return the classes that are made from the text part of a composite configuration of the same package."""
    package = config_class.__module__.split(".")[-2]
    composite = CONFIG_MAPPING[package] if package in CONFIG_MAPPING else config_class  # noqa: SIM401 - no such `get`
    return [c for c in causal_classes(composite) if c.config_class is config_class]


def takes_text_part(config_class: type[PreTrainedConfig], architecture: type[PreTrainedModel]) -> bool:
    """Whether an architecture is made from the text part of a composite configuration, as transformers' Auto does."""
    text_part = config_class.sub_configs.get("text_config")
    return text_part is not None and architecture.config_class is text_part


def causal_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration that the causal language model is made from: of some composite ones the text part.

    Raises:
        UnsupportedModelError: transformers has no causal language model for it.
    """
    return config.get_text_config() if takes_text_part(type(config), architecture_of(config)) else config


_made: dict[tuple[type, type], Any] = {}
"""Classes made so far, one for each kind of piece and architecture."""


def class_for(kind: type[CutModelT], architecture: type[PreTrainedModel]) -> type[CutModelT]:
    """Return the class of a cut model of an architecture; `copy.__class__ = class_for(...)` is allowed too.

    It keeps the architecture's name and module, which transformers looks at (loss types, experts, saving).
    """
    if (kind, architecture) not in _made:
        namespace = {
            "__module__": architecture.__module__,
            "__doc__": architecture.__doc__,
            "kind": kind,
            "architecture": architecture,
            "__reduce__": reduce_cut_model,
            "forward_parameters": frozenset(inspect.signature(architecture.forward).parameters) - {"self", "kwargs"},
            **kind.class_attributes(architecture),
        }
        _made[kind, architecture] = type(architecture.__name__, (kind, architecture), namespace)
    made: type[CutModelT] = _made[kind, architecture]
    return made


def reduce_cut_model(model: CutModel) -> tuple[Any, ...]:
    """Say how to make a copy: pickle finds no class of ours by its name, which is the architecture's own."""
    # Not `__dict__`: what `torch.compile` put there goes on with the weights of the original.
    state = nn.Module.__getstate__(model)  # type: ignore[no-untyped-call]
    return empty_cut_model, (model.kind, model.architecture), state


def empty_cut_model(kind: type[CutModel], architecture: type[PreTrainedModel]) -> CutModel:
    """Return an instance without any state."""
    made = class_for(kind, architecture)
    return made.__new__(made)


def loading_class_for(
    kind: type[CutModelT], architecture: type[PreTrainedModel], points: SplitPoints
) -> type[CutModelT]:
    """Return a class whose `from_pretrained` makes the cut before it looks for weights, so that no others load."""
    cut_class = class_for(kind, architecture)

    def __init__(self: CutModelT, config: PreTrainedConfig, *args: object, **kwargs: object) -> None:
        architecture.__init__(self, config, *args, **kwargs)
        self.become_cut(points, num_decoder_layers(config))

    namespace = {
        "__module__": architecture.__module__,
        "__init__": __init__,
        # The other parts' tensors are expected to be there; what this part lacks is reported as missing.
        "_keys_to_ignore_on_load_unexpected": [".*"],
    }
    return type(architecture.__name__, (cut_class,), namespace)
