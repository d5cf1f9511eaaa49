"""Cutting: a whole Hugging Face model becomes one that holds some of its layers and keeps every name."""

from dataclasses import dataclass
from typing import Self

from torch import nn
from transformers import PreTrainedModel

from splitlearn_core.split.absent import AbsentEmbedding, AbsentEncoder, AbsentLayer
from splitlearn_core.split.layers import encoders, find_layers, parameter_name
from splitlearn_core.split.points import SplitPoints


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What stays in one piece of a model."""

    num_layers: int
    """Number of decoder layers of the whole model."""
    kept: range | tuple[int, ...]
    """Indices of the layers that stay, ascending."""
    has_input_embeddings: bool
    """Whether token ids come in."""
    has_output_embeddings: bool
    """Whether logits come out."""

    @classmethod
    def bottom(cls, points: SplitPoints, num_layers: int) -> Self:
        """Embeddings and the first layers."""
        kept = range(points.bottom_end)
        return cls(num_layers=num_layers, kept=kept, has_input_embeddings=True, has_output_embeddings=False)

    @classmethod
    def trunk(cls, points: SplitPoints, num_layers: int) -> Self:
        """The middle layers alone."""
        kept = range(points.bottom_end, points.trunk_end)
        return cls(num_layers=num_layers, kept=kept, has_input_embeddings=False, has_output_embeddings=False)

    @classmethod
    def top(cls, points: SplitPoints, num_layers: int) -> Self:
        """The last layers and the head."""
        kept = range(points.trunk_end, num_layers)
        return cls(num_layers=num_layers, kept=kept, has_input_embeddings=False, has_output_embeddings=True)

    @classmethod
    def client(cls, points: SplitPoints, num_layers: int) -> Self:
        """Bottom and Top in one model."""
        kept = (*range(points.bottom_end), *range(points.trunk_end, num_layers))
        return cls(num_layers=num_layers, kept=kept, has_input_embeddings=True, has_output_embeddings=True)

    def keeps(self, layer_idx: int) -> bool:
        """Whether a layer stays."""
        return layer_idx in self.kept


def apply_cut(model: PreTrainedModel, cut: Cut) -> nn.ModuleList:
    """Take out of a model, in place, every layer and embedding that lives elsewhere; return its list of layers.

    Encoders of images and sound go too: a piece takes tokens and hidden states only. All other modules stay, also
    those that this piece never runs: they are small, and the code around the layers may look at them.
    """
    layers = find_layers(model).layers
    for index in range(cut.num_layers):
        if not cut.keeps(index):
            layers[index] = AbsentLayer(layers[index])
    for name, encoder in list(encoders(model)):
        _put(model, name, AbsentEncoder(encoder))
    _drop_embeddings(model, cut)
    model.all_tied_weights_keys = existing_tied_weights(model, model.all_tied_weights_keys)
    return layers


def existing_tied_weights(model: nn.Module, tied: dict[str, str]) -> dict[str, str]:
    """Return those pairs of tied weights of which both ends are still in the model."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {target: source for target, source in tied.items() if {target, source} <= names}


def _drop_embeddings(model: PreTrainedModel, cut: Cut) -> None:
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    tied_to_head = _is_tied(model, parameter_name(model, inputs), parameter_name(model, outputs))
    # The checkpoint of a tied model often holds the input embeddings alone: then they are the head.
    if not cut.has_input_embeddings and not (cut.has_output_embeddings and tied_to_head):
        _replace(model, inputs)
    if not cut.has_output_embeddings:
        _replace(model, outputs)


def _is_tied(model: PreTrainedModel, first: str | None, second: str | None) -> bool:
    return any({target, source} == {first, second} for target, source in model.all_tied_weights_keys.items())


def _replace(model: nn.Module, wanted: nn.Module | None) -> None:
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is wanted and module is not None:
            _put(model, name, AbsentEmbedding(next(module.parameters()).shape[-1]))


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
