"""What the caches of a trunk look like, so that one that comes over the wire can be held against it."""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from splitlearn_comm import InvalidRequestError, KVEntries


class _Form(NamedTuple):
    """Of one tensor, what does not depend on rows and tokens."""

    dtype: torch.dtype
    sizes: tuple[int, ...]


class CacheForm:
    """The layers, tensors, sizes and dtypes of a trunk's caches.

    Learnt from a cache the trunk itself has filled: no architecture needs a word of its own.

    Args:
        example: an exported cache of one row and one token.
    """

    def __init__(self, example: KVEntries) -> None:
        self._forms = {entry.layer: _forms_of(entry.kind, entry.tensors) for entry in example.entries}

    def check(self, cache: KVEntries) -> None:
        """Hold a cache with tokens in it against the form.

        Raises:
            InvalidRequestError: a layer comes twice, or a tensor of it has another size or dtype.
        """
        if len({entry.layer for entry in cache.entries}) != len(cache.entries):
            raise InvalidRequestError("past_key_values are not those of this trunk: a layer comes twice")
        for entry in cache.entries:
            expected, came = self._forms.get(entry.layer), _forms_of(entry.kind, entry.tensors)
            if expected is not None and entry.tensors and came != expected:
                raise InvalidRequestError(
                    f"past_key_values are not those of this trunk: layer {entry.layer} has {_shown(expected)} beside "
                    f"rows and tokens, came {_shown(came)}; hand back unchanged what a call gave"
                )


def _forms_of(kind: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, _Form]:
    # [B, heads, P, D]; the states of linear attention have no tokens.
    varying = (0,) if kind == "linear_attention" else (0, 2)
    return {
        name: _Form(tensor.dtype, tuple(size for dim, size in enumerate(tensor.shape) if dim not in varying))
        for name, tensor in tensors.items()
    }


def _shown(forms: dict[str, _Form]) -> str:
    return ", ".join(f"{name} {form.dtype} {list(form.sizes)}" for name, form in sorted(forms.items())) or "none"
