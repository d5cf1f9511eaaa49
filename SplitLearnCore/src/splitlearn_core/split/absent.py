"""What stands in a part where a layer or an embedding lives elsewhere: modules without a single parameter."""

import copy
from typing import Any

import torch
from torch import nn

from splitlearn_core.errors import UnsupportedOptionError


class Absent(nn.Module):
    """A module that lives elsewhere; answers look-ups of attributes from a copy of it without storage."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        # A tuple, so that torch does not register the original: it must not show up among modules or parameters.
        self._original = (without_storage(original),)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "_original":  # not yet there, while a copy is being made
                raise
            return getattr(self._original[0], name)


class AbsentLayer(Absent):
    """A decoder layer that lives in another part.

    It passes its input on in the shape that the loops of transformers unpack, and answers look-ups of attributes
    (`attention_type`, `layer_idx`, `self_attn.…`) from a copy of the original whose tensors are on the meta device.
    """

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, None]:
        """Return the hidden states that came in, untouched."""
        hidden = args[0] if args else kwargs.get("hidden_states")
        return (hidden[0] if isinstance(hidden, tuple) else hidden), None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run `forward`, through the machinery of hooks only where one hangs: every token passes all these layers."""
        return super().__call__(*args, **kwargs) if self._forward_hooks else self.forward(*args, **kwargs)

    def stand_in(self, name: str, parameter: nn.Parameter) -> None:
        """Show a parameter among the model's under the name that one has in the layer; it is no part of any state."""
        self._parameters[name] = parameter

    def stand_out(self) -> None:
        """Show no parameters any more."""
        self._parameters.clear()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        return

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        return


class AbsentEncoder(Absent):
    """An encoder of images or sound, which no part holds."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse what it would have to encode.

        Raises:
            UnsupportedOptionError: always.
        """
        name = type(self._original[0]).__name__
        raise UnsupportedOptionError(f"a split model takes text only; its {name} was left out: pass no images or sound")


class AbsentEmbedding(nn.Module):
    """An input or output embedding that lives in another part.

    Models that also take images compare their input with the embedding of a placeholder token. The answer is not a
    number: nothing equals it, and whoever went on computing with it would not get a wrong number unnoticed.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Return NaN of the shape of an embedding, [..., H]."""
        return torch.full((*indices.shape, self.width), torch.nan, device=indices.device)


def without_storage(module: nn.Module) -> nn.Module:
    """Copy a module with all its parameters and buffers replaced by empty ones on the meta device."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): meta_like(tensor) for tensor in tensors})


def meta_like(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the same shape and kind without storage."""
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
