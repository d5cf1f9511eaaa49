"""LoRA adapters of a model of which nobody holds all layers, drawn as `peft` would draw them for the whole.

`peft` draws an adapter's first values from torch's generator, one target after the other, as it meets them in the whole
model. A model without storage is enough for that: whoever knows the configuration draws the same values, for the layers
that live elsewhere too, and hands those over.
"""

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from splitlearn_core.errors import AdapterError
from splitlearn_core.parts.part import CutModel
from splitlearn_core.training.skeleton import model_without_storage

try:
    from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import get_pattern_key
except ImportError as error:
    raise ImportError("LoRA needs peft: pip install 'splitlearn-core[train]'") from error

ADAPTER_NAME = "default"
"""What `peft` calls an adapter that was given no name."""
NEEDING_WEIGHTS = ("corda", "eva", "loftq", "lora_ga", "olora", "pissa")
"""First values that are computed from the base weights, which the client does not hold."""
LORA_FIELDS = ("r", "lora_alpha", "lora_dropout", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern")
"""What of a `LoraConfig` a trunk is told, beside its targets."""
PATTERNS = {"rank_pattern": "r", "alpha_pattern": "lora_alpha"}
"""Of these, what says for which modules another value holds, and instead of which."""
MAX_VALUES = 128
"""Ranks, and alphas, of one adapter from elsewhere: each is a regular expression that every target is held against."""
NOT_THERE = {"use_dora": False, "bias": "none", "modules_to_save": None, "trainable_token_indices": None}
"""Options that a split model does not take, with what stands for none of it."""
PREFIX = "base_model.model."
"""What `peft` puts before the names of a whole model's parameters."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter of some or all layers of a model."""

    config: LoraConfig
    """As `peft` understood it: the targets are those of the whole model."""
    modules: tuple[str, ...]
    """Names of the modules that it changes, in the order of the whole model."""
    tensors: dict[str, torch.Tensor]
    """Its values, by the names of the parameters in the model that it was put into, in the order of the whole model."""

    def within(self, module_names: Iterable[str]) -> "Adapter":
        """Return what of it belongs to these modules."""
        held = set(module_names)
        kept = tuple(name for name in self.modules if name in held)
        begins = tuple(f"{name}." for name in kept)
        tensors = {name: tensor for name, tensor in self.tensors.items() if name.startswith(begins)}
        return Adapter(config=self.config, modules=kept, tensors=tensors)

    def put_into(self, model: CutModel) -> None:
        """Put what of it belongs to the modules that a model holds into that, in place."""
        put_into(model, self.within(name for name, _ in model.named_modules()))

    def take_out_of(self, model: CutModel) -> None:
        """Take it out of a model again, in place. The model need not have it."""
        for name, module in list(model.named_modules()):
            if name in self.modules and isinstance(module, LoraLayer):
                model.set_submodule(name, module.get_base_layer())
        vars(model).pop("peft_config", None)  # peft's mark of a model that has adapters

    def described(self, names: Iterable[str]) -> dict[str, Any]:
        """Return, as `adapter_of` takes it, what of it has parameters of these names."""
        named = set(names)
        modules = [m for m in self.modules if any(name.startswith(f"{m}.") for name in named)]
        fields = fields_of(self.config)
        told = {name: fields[name] for name in LORA_FIELDS}
        for pattern, usual in PATTERNS.items():
            values = {module: value_for(self.config, pattern, module) for module in modules}
            told[pattern] = {module: value for module, value in values.items() if value != fields[usual]}
        return {**told, "target_modules": modules}


def draw_adapter(
    architecture: type[PreTrainedModel],
    config: PreTrainedConfig,
    lora: LoraConfig,
    dtype: torch.dtype,
    within: Iterable[str] | None = None,
) -> Adapter:
    """Draw an adapter of a whole model from torch's generator, bit for bit as `peft.get_peft_model` does.

    Args:
        architecture: class of the whole model.
        config: its configuration.
        lora: what `peft` would be given for it.
        dtype: of the whole model's weights.
        within: names of the modules that may have one; None for all. For some only, the values are those that `peft`
            draws when it is told these targets by name.

    Raises:
        AdapterError: what `lora` asks for cannot be had across a cut, or matches nothing.
    """
    check_lora(lora)
    lora = copy.deepcopy(lora)  # peft writes into it what it understood
    skeleton = model_without_storage(architecture, config, dtype)
    names = {name for name, _ in skeleton.named_modules()}
    if within is not None:
        with torch.random.fork_rng(devices=[]):
            targets = targets_of(_whole_with_adapter(model_without_storage(architecture, config, dtype), lora))
        wanted = [name for name in targets if name in set(within)]
        if not wanted:
            raise AdapterError(nothing_matched(lora, [name for name in names if name in set(within)], skeleton))
        lora = naming(lora, wanted)
    whole = _whole_with_adapter(skeleton, lora)
    tensors = {
        name.removeprefix(PREFIX): parameter.detach()
        for name, parameter in whole.named_parameters()
        if parameter.requires_grad
    }
    understood = whole.peft_config[ADAPTER_NAME]
    assert isinstance(understood, LoraConfig)
    return Adapter(config=understood, modules=targets_of(whole), tensors=tensors)


def put_into(model: CutModel, adapter: Adapter) -> dict[str, nn.Parameter]:
    """Put an adapter that fits into a part or a client model, in place; return its parameters by name, in order."""
    if not adapter.modules:
        return {}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(naming(adapter.config, adapter.modules), model, ADAPTER_NAME)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.train(model.training)  # peft's new layers drop out, also in a model that evaluates
    put_in = {name: p for name, p in model.named_parameters() if name in adapter.tensors}
    # peft freezes whatever is no adapter; what trains beside one is not its business.
    for name, parameter in model.named_parameters():
        if name not in put_in:
            parameter.requires_grad_(parameter.requires_grad and name not in frozen)
    with torch.no_grad():
        for name, parameter in put_in.items():
            parameter.data = adapter.tensors[name].to(parameter.device, copy=True)
    return put_in


def check_fits(model: CutModel, adapter: Adapter) -> None:
    """Check that an adapter from elsewhere fits into a part, before anything is allocated for it.

    Raises:
        AdapterError: the part does not hold all its modules, or its values are not those that `peft` has for them.
    """
    missing = sorted(set(adapter.modules) - {name for name, _ in model.named_modules()})
    if missing:
        raise AdapterError(f"the adapter changes {', '.join(missing)}, which this part does not hold")
    expected: dict[str, list[int]] = {}
    for module in adapter.modules:
        rank = value_for(adapter.config, "rank_pattern", module)
        expected |= {f"{module}.{name}": shape for name, shape in shapes_for(model.get_submodule(module), rank).items()}
    for name in (*expected, *adapter.tensors):
        shape, came = expected.get(name), adapter.tensors.get(name)
        if shape is None or came is None or list(came.shape) != shape or not came.is_floating_point():
            wanted = "no value of that name" if shape is None else f"floating-point numbers {shape}"
            got = "none" if came is None else f"{list(came.shape)} in {came.dtype}"
            raise AdapterError(f"expected of {name} {wanted}; got {got}: send an adapter of this model and rank")


def shapes_for(module: nn.Module, rank: int) -> dict[str, list[int]]:
    """Return the shapes that `peft` gives to an adapter of a module, by the names of its values in it.

    Raises:
        AdapterError: there are none of such a module, or of that rank.
    """
    down, up = f"lora_A.{ADAPTER_NAME}.weight", f"lora_B.{ADAPTER_NAME}.weight"
    if isinstance(module, nn.Linear):
        return {down: [rank, module.in_features], up: [module.out_features, rank]}
    if isinstance(module, Conv1D):
        num_in, num_out = module.weight.shape
        return {down: [rank, num_in], up: [num_out, rank]}
    if isinstance(module, nn.Embedding):
        down, up = f"lora_embedding_A.{ADAPTER_NAME}", f"lora_embedding_B.{ADAPTER_NAME}"
        return {down: [rank, module.num_embeddings], up: [module.embedding_dim, rank]}
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and rank % module.groups == 0:
        ones = [1] * len(module.kernel_size)
        of_up = [module.out_channels, rank // module.groups, *ones]
        return {down: [rank, module.in_channels, *module.kernel_size], up: of_up}
    raise AdapterError(f"there is no adapter of rank {rank} of a {module}: leave it out of target_modules")


def adapter_of(fields: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Adapter:
    """Return the adapter that another process described; its targets are named one by one.

    Raises:
        AdapterError: it says more than an adapter may, names no targets, or has ranks for others than these.
    """
    # By name, and not what a LoraConfig takes: among that are names of modules to import.
    unknown = sorted(set(fields) - {*LORA_FIELDS, "target_modules"})
    modules = fields.get("target_modules")
    if unknown or not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        raise AdapterError(f"expected target_modules by name and {', '.join(LORA_FIELDS)}; got {', '.join(unknown)}")
    patterns = {name: values_by_module(name, fields.get(name) or {}, modules) for name in PATTERNS}
    ranks = [fields.get("r", 8), *patterns["rank_pattern"].values()]
    if not all(isinstance(rank, int) and rank > 0 for rank in ranks):
        raise AdapterError(f"expected ranks of 1 or more; got {ranks}")
    try:
        config = LoraConfig(**{**fields, **{name: matching_only(values) for name, values in patterns.items()}})
    except (TypeError, ValueError) as error:
        raise AdapterError(f"no adapter: {error}") from error
    return Adapter(config=config, modules=tuple(modules), tensors=dict(tensors))


def values_by_module(pattern: str, values: Any, modules: Iterable[str]) -> dict[str, Any]:
    """Look at the ranks or alphas that another process gives to some targets, by their names.

    Raises:
        AdapterError: they are no numbers, too many different ones, or of modules that are no targets.
    """
    if not isinstance(values, dict) or not all(isinstance(value, (int, float)) for value in values.values()):
        raise AdapterError(f"expected {pattern} as an object of names and numbers")
    others = sorted(set(values) - set(modules))
    if others:
        raise AdapterError(f"expected {pattern} by names among target_modules; got {', '.join(others[:4])}")
    if len(set(values.values())) > MAX_VALUES:
        raise AdapterError(
            f"expected {MAX_VALUES} different values at most in {pattern}; got {len(set(values.values()))}"
        )
    return values


def matching_only(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of modules as `peft` takes them, under regular expressions: each matches these names whole."""
    names_of: dict[Any, list[str]] = {}
    for name, value in values.items():
        names_of.setdefault(value, []).append(name)
    # peft searches "(.*\.)?(key)$", which alone would take what ends in a name for it, too.
    return {rf"\A(?:{'|'.join(map(re.escape, names))})": value for value, names in names_of.items()}


def value_for(lora: LoraConfig, pattern: str, module: str) -> Any:
    """Return the rank (of "rank_pattern") or alpha that a module has."""
    values = getattr(lora, pattern)
    return values.get(get_pattern_key(list(values), module), getattr(lora, PATTERNS[pattern]))


def check_lora(lora: LoraConfig) -> None:
    """Check that an adapter can be had across a cut.

    Raises:
        AdapterError: it is none of LoRA, or needs what no side holds alone.
    """
    if not isinstance(lora, LoraConfig):
        raise AdapterError(f"lora= takes a peft.LoraConfig; got {type(lora).__name__}")
    first_values = lora.init_lora_weights
    if isinstance(first_values, str) and first_values.lower().startswith(NEEDING_WEIGHTS):
        raise AdapterError(
            f"init_lora_weights={first_values!r} computes first values from the base weights, which no side of the cut "
            "holds alone: leave it out, or take 'gaussian' or 'orthogonal'"
        )
    for name, usual in NOT_THERE.items():
        if (getattr(lora, name, usual) or usual) != usual:
            raise AdapterError(f"{name}={getattr(lora, name)!r} is not there for a split model: leave it out")


def naming(lora: LoraConfig, modules: Iterable[str]) -> LoraConfig:
    """Return the same adapter with its targets named one by one."""
    fields = {**fields_of(lora), "layers_to_transform": None, "layers_pattern": None, "exclude_modules": None}
    return LoraConfig(**{**fields, "target_modules": list(modules)})


def fields_of(lora: LoraConfig) -> dict[str, Any]:
    """Return the fields of a LoRA configuration."""
    fields: dict[str, Any] = lora.to_dict()  # type: ignore[no-untyped-call]
    return fields


def targets_of(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that an adapter changes, in the order of the model."""
    return tuple(name.removeprefix(PREFIX) for name, module in model.named_modules() if isinstance(module, LoraLayer))


def _whole_with_adapter(skeleton: PreTrainedModel, lora: LoraConfig) -> PeftModel:
    try:
        made = get_peft_model(skeleton, lora)
    except ValueError as error:
        if "not found in the base model" not in str(error):
            raise AdapterError(str(error)) from error
        raise AdapterError(nothing_matched(lora, [n for n, _ in skeleton.named_modules()], skeleton)) from error
    assert isinstance(made, PeftModel)
    return made


def nothing_matched(lora: LoraConfig, names: Iterable[str], model: nn.Module) -> str:
    """Say that the targets of an adapter match nothing, and which modules there are."""
    kinds = sorted({name.rpartition(".")[2] for name in names if is_weighted_leaf(model.get_submodule(name))})
    wanted = lora.target_modules or ()
    named = wanted if isinstance(wanted, str) else ", ".join(sorted(wanted))
    return f"target_modules={named} matches nothing there; there are {', '.join(kinds)}"


def is_weighted_leaf(module: nn.Module) -> bool:
    """Whether a module is one of those that adapters change: a weight of two dimensions and nothing inside."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dim() == 2 and not list(module.children())
