"""A cache as plain named tensors and back, so that it can travel with a call."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

from splitlearn_core.cache.growing import GrowingLayer
from splitlearn_core.cache.part_cache import PartCache
from splitlearn_core.errors import UnsupportedModelError

KINDS: dict[type, str] = {
    DynamicLayer: "attention",
    GrowingLayer: "attention",
    DynamicSlidingWindowLayer: "sliding_attention",
    LinearAttentionLayer: "linear_attention",
}
"""Cache layers that can be exported, and the name of each kind on the wire."""


@dataclass(frozen=True, kw_only=True)
class LayerState:
    """The cache of one layer."""

    layer: int
    """Index of the layer in the whole model."""
    kind: str
    """One of the values of `KINDS`."""
    tensors: Mapping[str, torch.Tensor]
    """`keys` and `values` [B, heads, P, D], or `conv` and `recurrent` states; empty before the first token."""


def export_cache(cache: PartCache) -> list[LayerState]:
    """Return the state of every layer that a part's cache owns; the tensors are the cache's own, not copies.

    Raises:
        UnsupportedModelError: the architecture caches something that cannot be exported.
    """
    return [LayerState(layer=index, kind=kind_of(layer), tensors=_read(layer)) for index, layer in cache.own_items()]


def import_cache(cache: PartCache, states: list[LayerState], position: int) -> None:
    """Fill an empty cache with exported states.

    Args:
        cache: an empty cache of the same part; changed in place.
        states: what `export_cache` returned, in any order.
        position: number of tokens in the exported cache.

    Raises:
        ValueError: the states belong to other layers, or to layers of another kind.
    """
    expected = {index: kind_of(layer) for index, layer in cache.own_items()}
    got = {state.layer: state.kind for state in states}
    if expected != got:
        raise ValueError(f"expected the cache of layers {expected}; got that of {got}")
    num_rows = 0
    for state in states:
        _check_state(state, position)
        _write(cache.layers[state.layer], state.tensors, position)
        num_rows = max([num_rows, *(tensor.shape[0] for tensor in state.tensors.values())])
    cache.advance(num_rows, position)


def _check_state(state: LayerState, position: int) -> None:
    """Check that a state has the tensors of its kind, as many rows each, and the length that it says."""
    if state.kind == "linear_attention" or not (state.tensors or position):
        return
    if set(state.tensors) != {"keys", "values"} or any(t.dim() != 4 for t in state.tensors.values()):
        shapes = {name: list(tensor.shape) for name, tensor in state.tensors.items()}
        raise ValueError(f"expected keys and values [B, heads, P, D] for layer {state.layer}; got {shapes}")
    lengths = {tensor.shape[2] for tensor in state.tensors.values()}
    if (state.kind == "attention" and lengths != {position}) or max(lengths) > position:
        raise ValueError(f"expected a cache of {position} tokens for layer {state.layer}; got {sorted(lengths)}")


def kind_of(layer: object) -> str:
    """Return the name of a cache layer's kind.

    Raises:
        UnsupportedModelError: the layer caches something that cannot be exported.
    """
    if type(layer) not in KINDS:
        raise UnsupportedModelError(
            f"a cache of kind {type(layer).__name__} cannot travel with a call; use a session instead"
        )
    return KINDS[type(layer)]


def _read(layer: Any) -> dict[str, torch.Tensor]:
    if isinstance(layer, LinearAttentionLayer):
        named = {
            **{f"conv.{i}": state for i, state in layer.conv_states.items()},
            **{f"recurrent.{i}": state for i, state in layer.recurrent_states.items()},
        }
        return {name: state for name, state in named.items() if state is not None}
    return {"keys": layer.keys, "values": layer.values} if layer.is_initialized else {}


def _write(layer: Any, tensors: Mapping[str, torch.Tensor], position: int) -> None:
    if not tensors:
        return
    if isinstance(layer, LinearAttentionLayer):
        for name, state in tensors.items():
            kind, _, index = name.partition(".")
            initial: dict[str, Any] = {f"{kind}_states": state, "state_idx": int(index)}
            layer.lazy_initialization(**initial)
            getattr(layer, f"{kind}_states")[int(index)].copy_(state)
            layer.has_previous_state[int(index)] = True
        return
    layer.lazy_initialization(tensors["keys"], tensors["values"])
    layer.keys, layer.values = tensors["keys"], tensors["values"]
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = position
