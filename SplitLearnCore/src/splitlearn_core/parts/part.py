"""What Bottom, Trunk and Top have in common: a cut Hugging Face model, an entry and an exit.

Tensor shapes: B rows, T new tokens, P cached tokens, H hidden size, V vocabulary.
"""

from contextlib import nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from splitlearn_core.cache.part_cache import PartCache
from splitlearn_core.errors import PartInputError
from splitlearn_core.split.cut import Cut, apply_cut, existing_tied_weights
from splitlearn_core.split.layers import decoder_config, embedding_width, max_positions
from splitlearn_core.split.points import SplitPoints


class HiddenOutput(NamedTuple):
    """What Bottom and Trunk return with `use_cache=True`."""

    hidden_states: torch.Tensor
    """[B, T, H], in the dtype of the part."""
    past_key_values: PartCache
    """The cache to hand back with the next tokens."""


class LogitsOutput(NamedTuple):
    """What Top returns with `use_cache=True`."""

    logits: torch.Tensor
    """[B, T, V], or [B, k, V] with `logits_to_keep=k`."""
    past_key_values: PartCache
    """The cache to hand back with the next tokens."""


class LayersDone(Exception):
    """Leaves a forward after the last layer that a part holds, with the hidden states."""

    def __init__(self, hidden_BTH: torch.Tensor) -> None:
        super().__init__("the last layer of this part has run")
        self.hidden_BTH = hidden_BTH


class CutModel(PreTrainedModel):
    """A Hugging Face model of which some layers live elsewhere; every parameter keeps its name.

    Concrete classes are made by `class_for`, which puts one of our classes in front of an architecture's own.
    """

    kind: ClassVar[type[PreTrainedModel]]
    """The one of our classes that the concrete class was made with."""
    architecture: ClassVar[type[PreTrainedModel]]
    """The class of the whole model."""
    forward_parameters: ClassVar[frozenset[str]]
    """Names of the arguments of the architecture's own forward."""
    split_points: SplitPoints
    """Cut points `(a, b)` in the whole model."""
    cut: Cut
    """What this piece holds."""
    max_positions: int | None
    """Longest sequence in tokens that the model was made for; None where it has no bound."""
    fingerprint: str | None = None
    """Fingerprint of the checkpoint that the weights came from; None when they came from memory."""
    _represented_by: tuple[nn.Module, str] | None = None

    @classmethod
    def class_attributes(cls, architecture: type[PreTrainedModel]) -> dict[str, Any]:
        """Return what else the concrete class for an architecture needs."""
        return {}

    @classmethod
    def cut_for(cls, points: SplitPoints, num_layers: int) -> Cut:
        """Return what this kind of piece holds."""
        raise NotImplementedError

    def become_cut(self, points: SplitPoints, num_layers: int) -> None:
        """Drop, in place, what lives elsewhere, and put the entry and the exit where this piece begins and ends."""
        self.split_points = points
        self.cut = self.cut_for(points, num_layers)
        self.embedding_width = embedding_width(self)
        # Read once: looking things up in a configuration costs microseconds, and every token would pay them.
        self._hidden_size = int(decoder_config(self.config).hidden_size)
        self.max_positions = max_positions(self.config)
        self._represented_by = None
        self.install(apply_cut(self, self.cut))

    def install(self, layers: nn.ModuleList) -> None:
        """Register the hooks through which hidden states enter and leave the layers."""
        raise NotImplementedError

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Return the pairs of tied weights of which both ends are here."""
        tied = super().get_expanded_tied_weights_keys(all_submodels)
        # Called from the architecture's own __init__ too, before anything was cut.
        return existing_tied_weights(self, tied) if hasattr(self, "cut") else tied

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states between the layers."""
        return self._hidden_size

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights: that of the first floating one, as in transformers."""
        return self._representative().dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._representative().device

    def _representative(self) -> torch.Tensor:
        # Every forward asks; transformers walks the modules each time, which for a small step is a part of its cost.
        if self._represented_by is None:
            self._represented_by = first_floating_parameter(self)
        module, name = self._represented_by
        parameter: torch.Tensor = getattr(module, name)
        return parameter

    def new_cache(self) -> PartCache:
        """Return an empty cache for the layers of this piece."""
        return PartCache(self.config, self.cut.kept)

    def call_whole(self, **inputs: Any) -> Any:
        """Call the architecture's own forward with those of the inputs that it takes and that are given."""
        if "past_key_values" not in self.forward_parameters and "past_key_values" in inputs:
            # A model without attention: its cache has another name, and a mask is for the new tokens only.
            inputs["cache_params"] = inputs.pop("past_key_values")
            inputs["attention_mask"] = mask_of_new_tokens(**inputs)
        known = {k: v for k, v in inputs.items() if v is not None and k in self.forward_parameters}
        return self.architecture.forward(self, **known)


class Part(CutModel):
    """Bottom, Trunk or Top. One forward at a time: the tensor that comes in waits in an attribute."""

    _received_BTH: torch.Tensor | None = None

    def install(self, layers: nn.ModuleList) -> None:
        """Enter before the first kept layer where nothing is embedded, leave after the last where there is no head."""
        first, last = layers[self.cut.kept[0]], layers[self.cut.kept[-1]]
        if not self.cut.has_input_embeddings:
            first.register_forward_pre_hook(self._put_received_in, with_kwargs=True)
        if not self.cut.has_output_embeddings:
            last.register_forward_hook(leave_with_hidden)

    def _put_received_in(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert self._received_BTH is not None
        return replace_hidden(args, kwargs, self._received_BTH)

    def check_hidden(self, hidden_BTH: torch.Tensor) -> None:
        """Refuse what cannot be hidden states of this model.

        Raises:
            PartInputError: not a floating-point tensor [B, T, H] of this part's width and dtype; under autocast layers
                take any dtype, as those of a whole model do.
        """
        width, dtype = self.hidden_size, self.dtype
        wanted = f"hidden states [batch, tokens, {width}] in {dtype}"
        if not isinstance(hidden_BTH, torch.Tensor):
            raise PartInputError(f"expected {wanted}; got {type(hidden_BTH).__name__}")
        came = f"{list(hidden_BTH.shape)} in {hidden_BTH.dtype}"
        if not hidden_BTH.is_floating_point():
            raise PartInputError(f"expected {wanted}; got {came}: token ids go into the Bottom part")
        if hidden_BTH.dim() != 3 or hidden_BTH.shape[-1] != width:
            raise PartInputError(f"expected {wanted}; got {came}: does it come from the same model?")
        if hidden_BTH.dtype != dtype and not torch.is_autocast_enabled(self.device.type):
            raise PartInputError(f"expected {wanted}; got {came}: convert it with .to({dtype})")

    def run_layers(self, *, hidden_BTH: torch.Tensor | None = None, cache: PartCache | None, **inputs: Any) -> Any:
        """Run the layers of this part; `hidden_BTH` [B, T, H] enters before the first of them.

        Returns the hidden states [B, T, H], or the output of the whole model's forward where the head is here.
        """
        if hidden_BTH is not None:
            self.check_hidden(hidden_BTH)
            # Never looked at: the layers that would are elsewhere. Its shape and dtype make masks and positions: the
            # dtype of the weights, which under autocast is not always that of the hidden states.
            shape = (*hidden_BTH.shape[:2], self.embedding_width)
            inputs["inputs_embeds"] = hidden_BTH.new_zeros(shape, dtype=self.dtype)
        entering = inputs["input_ids"] if hidden_BTH is None else hidden_BTH
        num_rows, num_tokens = entering.shape[:2]
        if cache is not None and cache.position and not has_any(inputs, "attention_mask", "position_ids"):
            # Said and not left to the architecture: some count from 0 again at every step.
            inputs["position_ids"] = going_on(num_rows, cache.position, num_tokens, entering.device)
        with nullcontext() if cache is None else cache.appending(num_rows, num_tokens):
            return self._run_through(hidden_BTH, past_key_values=cache, use_cache=cache is not None, **inputs)

    def _run_through(self, hidden_BTH: torch.Tensor | None, **inputs: Any) -> Any:
        self._received_BTH = hidden_BTH
        try:
            return self.call_whole(**inputs)
        except LayersDone as done:
            return done.hidden_BTH
        finally:
            self._received_BTH = None

    def cache_for(self, past_key_values: PartCache | None, use_cache: bool) -> PartCache | None:
        """Return the cache to use: the one handed in, a new one when asked for, or none.

        Raises:
            PartInputError: the cache was made by another part or by transformers.
        """
        if past_key_values is None:
            return self.new_cache() if use_cache else None
        if not isinstance(past_key_values, PartCache) or past_key_values.own_layers != tuple(self.cut.kept):
            raise PartInputError(
                "past_key_values must be what this part returned before, or None at first; "
                f"got {type(past_key_values).__name__}"
            )
        return past_key_values


def going_on(num_rows: int, begin: int, num_tokens: int, device: torch.device) -> torch.Tensor:
    """Return the positions [R, T] of tokens without padding that come behind `begin` others."""
    return torch.arange(begin, begin + num_tokens, device=device).expand(num_rows, num_tokens)


def has_any(inputs: dict[str, Any], *names: str) -> bool:
    """Whether one of these inputs is given."""
    return any(inputs.get(name) is not None for name in names)


def first_floating_parameter(model: nn.Module) -> tuple[nn.Module, str]:
    """Return the module that holds a model's first floating-point parameter, and the parameter's name in it."""
    return next(
        (module, name)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.is_floating_point()
    )


def mask_of_new_tokens(
    attention_mask: torch.Tensor | None = None,
    input_ids: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
    **others: Any,
) -> torch.Tensor | None:
    """Return the columns [B, T] of a mask [B, P + T] that belong to the tokens of this call."""
    new = inputs_embeds if input_ids is None else input_ids
    return attention_mask if attention_mask is None or new is None else attention_mask[:, -new.shape[1] :]


def leave_with_hidden(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Forward hook of the last layer of a part: raise its hidden states out of the model's forward."""
    raise LayersDone(output[0] if isinstance(output, tuple) else output)


def replace_hidden(args: tuple[Any, ...], kwargs: dict[str, Any], hidden_BTH: torch.Tensor) -> Any:
    """Return a layer's arguments with the hidden states replaced, positional or by keyword."""
    if args:
        return (hidden_BTH, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden_BTH}
