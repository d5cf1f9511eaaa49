"""The client model: a Hugging Face model with Bottom and Top here, whose middle lives behind a trunk port.

Tensor shapes: B rows, T new tokens, P cached tokens, H hidden size.
"""

import functools
import inspect
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from splitlearn_core.errors import CoreError, PartInputError, UnsupportedOptionError
from splitlearn_core.parts.part import CutModel
from splitlearn_core.parts.port import TrunkPort
from splitlearn_core.parts.split_cache import SplitCache
from splitlearn_core.split.cut import Cut
from splitlearn_core.split.points import SplitPoints
from splitlearn_core.training.crossing import TrunkPasses
from splitlearn_core.training.guard import GuardConfig
from splitlearn_core.training.run import TrainingRun, frozen_passes, start_training
from splitlearn_core.training.seeding import Seeding

if TYPE_CHECKING:
    from peft import LoraConfig

TRUNK_INTERNALS = ("output_attentions", "output_hidden_states")
"""What a forward may be asked for that only the trunk could answer."""


class Crossing(NamedTuple):
    """What goes to the trunk beside the hidden states of the forward that is running."""

    cache: SplitCache | None
    attention_mask: torch.Tensor | None
    """[B, P + T] where there is padding."""
    position_ids: torch.Tensor | None
    """[B, T] where positions do not just go on."""


class SplitModel(CutModel, GenerationMixin):
    """Bottom and Top in one Hugging Face model; `generate` and tied weights are Hugging Face's own.

    One forward at a time. Concrete classes are made by `class_for`.
    """

    trunk: TrunkPort
    """The middle; set by whoever makes the model."""
    passes: TrunkPasses | None = None
    """The way of gradients through the trunk; set by `start_training`."""
    run: TrainingRun | None = None
    """The training that is under way."""
    dropout_seeding: Seeding | None = None
    """What dropout is drawn from, inside `seeded_dropout`."""
    _layers_return_tuples: bool = False
    _generation_cache: SplitCache | None = None
    _crossing: Crossing | None = None

    @classmethod
    def class_attributes(cls, architecture: type[PreTrainedModel]) -> dict[str, Any]:
        """Give the class a forward with the architecture's own signature, which `generate` and `Trainer` read."""
        signature = inspect.signature(architecture.forward)

        @functools.wraps(architecture.forward)
        def forward(self: "SplitModel", *args: Any, **kwargs: Any) -> Any:
            if not args:  # as generate calls it, once a token
                return self.forward_across(kwargs)
            bound = signature.bind(self, *args, **kwargs)
            named = {**bound.arguments, **bound.arguments.get("kwargs", {})}
            return self.forward_across({k: v for k, v in named.items() if k not in ("self", "kwargs")})

        return {"forward": forward}

    @classmethod
    def cut_for(cls, points: SplitPoints, num_layers: int) -> Cut:
        """Return what a client holds."""
        return Cut.client(points, num_layers)

    def install(self, layers: nn.ModuleList) -> None:
        """Cross in the last layer that lives elsewhere, to which the model's own loop brings the Bottom's output.

        Not in a hook of a layer that is here: that may run inside a checkpoint of its activations, where there is no
        graph, and again in the backward.
        """
        layers[self.split_points.bottom_end - 1].register_forward_hook(self._note_form)
        layers[self.split_points.trunk_end - 1].register_forward_hook(self._cross)

    def new_cache(self) -> SplitCache:
        """Return an empty cache whose trunk half is a session of its own."""
        return SplitCache(self.config, self.cut.kept, self.trunk_now.open_session)

    @property
    def trunk_now(self) -> TrunkPort:
        """The middle as it is now: while a training is under way, with what it has made of it up to the last update."""
        trained = None if self.passes is None else self.passes.trained_trunk
        return self.trunk if trained is None else trained

    def start_training(
        self,
        *,
        train: Iterable[str] = ("bottom", "trunk", "top"),
        lora: "LoraConfig | None" = None,
        optimizer: str | type[torch.optim.Optimizer] = "adamw",
        no_weight_decay: Iterable[str] = (),
        seed: int = 0,
        recompute: float = 0.0,
        guard: GuardConfig | None = None,
        **options: Any,
    ) -> TrainingRun:
        """Begin to train: adapters are put in, all else is frozen, and there is one optimizer for both sides.

        A loop, `transformers.Trainer` or clipping need know nothing of the cut: the trunk's parameters are among
        `parameters()` as proxies of two elements, whose gradients are the norms of the trunk's own.

        Args:
            train: which parts train: any of `"bottom"`, `"trunk"`, `"top"`.
            lora: adapter of these parts, as `peft` takes it for the whole model; its first values are those that `peft`
                would draw there. None to train all parameters of these parts.
            optimizer: name of a class of `torch.optim`, or the class.
            no_weight_decay: names of parameters, of all parts, that `weight_decay` leaves alone: a second group of
                the optimizer.
            seed: what the trunk's dropout is drawn from.
            recompute: share of the trunk's layers, 0 to 1 (True), that keep only what enters them between forward and
                backward, and compute their other activations again. For Bottom and Top there is
                `activation_checkpointing_enable`.
            guard: what is done about gradients that make no sense; None for its defaults: an update with NaN or
                infinity in it is not done, on either side, and more than ten of them in a row are an error.
            options: of the optimizer: `lr`, `weight_decay`, …

        Returns:
            The run: `run.optimizer` is an ordinary optimizer whose `step()` steps the trunk too.

        Raises:
            AdapterError: an adapter that cannot be had across a cut, or that matches nothing.
            TrainingError: a part or an optimizer that there is not, an option that it does not take, a name that
                nothing has that trains, or a model that trains already.
        """
        return start_training(
            self,
            train=train,
            lora=lora,
            optimizer=optimizer,
            no_weight_decay=no_weight_decay,
            seed=seed,
            recompute=recompute,
            guard=guard,
            options=options,
        )

    def forward_across(self, inputs: dict[str, Any]) -> Any:
        """Run Bottom, trunk and Top; `inputs` are the arguments of the architecture's own forward by name.

        Raises:
            UnsupportedOptionError: the trunk's attentions or hidden states, or a cache that is not a split model's.
            PartInputError: a sequence longer than the model's maximum, or a mask that is not [B, P + T].
        """
        self._refuse_trunk_internals(inputs)
        mask = needed_mask(inputs.get("attention_mask"))
        cache = self._cache_of(inputs)
        embedded = inputs.get("input_ids") if inputs.get("input_ids") is not None else inputs.get("inputs_embeds")
        if embedded is None:
            raise PartInputError("expected input_ids [batch, tokens] or inputs_embeds; got neither")
        num_rows, num_tokens = embedded.shape[:2]
        if (labels := inputs.get("labels")) is not None and labels.shape != embedded.shape[:2]:
            raise PartInputError(
                f"labels go with the tokens, one each: expected {list(embedded.shape[:2])}, got {list(labels.shape)}; "
                "label what is not to be learned -100"
            )
        self._check_length(num_tokens + (cache.position if cache is not None else 0))
        with nullcontext() if cache is None else cache.appending(num_rows, num_tokens):
            return self._run_across(inputs, cache, mask)

    def _run_across(self, inputs: dict[str, Any], cache: SplitCache | None, mask: torch.Tensor | None) -> Any:
        if self._crossing is not None:
            raise RuntimeError("two forwards of one split model at the same time; load a model for each thread")
        past = 0 if cache is None else cache.position
        self._crossing = Crossing(cache, mask, needed_positions(inputs.get("position_ids"), past))
        try:
            output = self.architecture.forward(self, **inputs)
        finally:
            self._crossing = None
        if self.passes is not None and (loss := getattr(output, "loss", None)) is not None:
            self.passes.see_loss(loss)
        return output

    def _cache_of(self, inputs: dict[str, Any]) -> SplitCache | None:
        name = "past_key_values" if "past_key_values" in self.forward_parameters else "cache_params"
        cache = inputs.get(name)
        use_cache = inputs.get("use_cache")
        if use_cache is None:
            # Unlike in transformers, not by default: a cache that nobody asked for would be a session on a server.
            use_cache = cache is not None
        if cache is None and use_cache:
            cache = self.new_cache()
        self._check_cache(cache)
        given = {name: cache, "use_cache": use_cache}
        inputs.update({key: value for key, value in given.items() if key in self.forward_parameters})
        return cache

    def _check_cache(self, cache: object) -> None:
        is_own = isinstance(cache, SplitCache) and cache.own_layers == tuple(self.cut.kept)
        if cache is not None and not is_own:
            raise UnsupportedOptionError(foreign_cache_message(cache))

    def _check_length(self, total_tokens: int) -> None:
        limit = self.max_positions
        if limit is not None and total_tokens > limit:
            raise PartInputError(
                f"this model takes sequences of at most {limit} tokens; got {total_tokens}: "
                "shorten the prompt or lower max_new_tokens"
            )

    def _warn_of_length(self, max_length: int | None) -> None:
        limit = self.max_positions
        # What is generated last is never fed back.
        if limit is not None and max_length is not None and max_length - 1 > limit:
            warnings.warn(
                f"this generation may become {max_length} tokens long, and the model takes sequences of at most "
                f"{limit}: unless it ends before, it fails there; lower max_new_tokens",
                stacklevel=2,
            )

    def _note_form(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._layers_return_tuples = isinstance(output, tuple)

    def _cross(self, layer: nn.Module, args: tuple[Any, ...], output: tuple[torch.Tensor, None]) -> Any:
        left_BTH = self._across(output[0])
        # As the layers that are here return it: a loop that does not unpack hands a tuple on to the Top.
        return (left_BTH, None) if self._layers_return_tuples else left_BTH

    def _across(self, hidden_BTH: torch.Tensor) -> torch.Tensor:
        assert self._crossing is not None
        cache, mask, positions = self._crossing
        if cache is None:
            if self.training and torch.is_grad_enabled() and (passes := self._passes_for()) is not None:
                seeding = self.dropout_seeding
                return passes.run(hidden_BTH, mask, positions, None if seeding is None else seeding.current)
            return self.trunk_now.compute(hidden_BTH, mask, positions, training=self.training)
        session = cache.session
        if session.position != cache.position:
            # Halves that had come apart would go unnoticed: the tokens would only be a little wrong.
            raise CoreError(f"the trunk's cache holds {session.position} tokens, ours {cache.position}; start again")
        return session.step(hidden_BTH, mask, positions, training=self.training)

    def _passes_for(self) -> TrunkPasses | None:
        """The way of a training forward through the trunk; None where gradients go there by themselves."""
        if self.passes is None and not self.trunk.is_differentiable:
            self.passes = frozen_passes(self.trunk, self.device)
        return self.passes

    def _refuse_trunk_internals(self, inputs: dict[str, Any]) -> None:
        for option in TRUNK_INTERNALS:
            asked = inputs.get(option)
            if getattr(self.config, option, False) if asked is None else asked:
                raise UnsupportedOptionError(f"{option}=True needs the trunk's inside, which does not cross the wire")

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Hugging Face's own `generate`; frees the trunk's session at the end unless the caller holds the cache.

        Raises:
            UnsupportedOptionError: before the first token, for what would need the trunk's inside.
        """
        self._generation_cache = None
        output: Any = None
        try:
            output = super().generate(*args, **kwargs)  # type: ignore[misc]  # annotates self as a private class
        finally:
            self._leave_generation_cache(is_held_by_caller=not (output is None or isinstance(output, torch.Tensor)))
        return output

    def _leave_generation_cache(self, *, is_held_by_caller: bool) -> None:
        cache, self._generation_cache = self._generation_cache, None
        if cache is not None and not is_held_by_caller:
            cache.close()

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: without the trunk the files would look like a whole checkpoint and be none.

        Raises:
            UnsupportedOptionError: always.
        """
        raise UnsupportedOptionError(
            "a split model holds Bottom and Top only and cannot be saved as a checkpoint; "
            "save model.state_dict() with safetensors: its names are those of the unsplit model"
        )

    def _prepare_cache_for_generation(  # type: ignore[override]  # what follows differs between versions
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        # transformers calls this before the first forward, with the options of this generation settled.
        self._refuse_trunk_internals({name: getattr(generation_config, name, None) for name in TRUNK_INTERNALS})
        self._warn_of_length(generation_config.max_length)
        name = "past_key_values" if "past_key_values" in self.forward_parameters else "cache_params"
        given = model_kwargs.get(name)
        self._check_cache(given)
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise UnsupportedOptionError(
                f"cache_implementation={generation_config.cache_implementation!r} is not there for a split model: "
                "the trunk keeps its half of the cache itself; leave it unset"
            )
        if given is None and generation_config.use_cache is not False:
            self._generation_cache = model_kwargs[name] = self.new_cache()
            if generation_config.is_assistant:
                model_kwargs[name].activate_past_recording()


def foreign_cache_message(cache: object) -> str:
    """Say why a cache of transformers cannot be used."""
    return (
        f"past_key_values must come from this split model (its outputs, or model.new_cache()); got "
        f"{type(cache).__name__}, which has no half on the trunk"
    )


def needed_mask(attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """Return a mask [B, P + T] that says something, None for one without padding.

    Raises:
        PartInputError: the mask does not have two dimensions.
    """
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2:
        raise PartInputError("a split model takes an attention_mask [batch, tokens] of zeros and ones only")
    return None if bool(attention_mask.all()) else attention_mask


def needed_positions(position_ids: torch.Tensor | None, past: int) -> torch.Tensor | None:
    """Return positions [B, T] that differ from going on after `past` tokens, else None."""
    if position_ids is None:
        return None
    if position_ids.shape == (1, 1):  # a step of generate: one number, not four kernels
        return None if int(position_ids) == past else position_ids
    going_on = torch.arange(past, past + position_ids.shape[-1], device=position_ids.device)
    return None if bool((position_ids == going_on).all()) else position_ids
