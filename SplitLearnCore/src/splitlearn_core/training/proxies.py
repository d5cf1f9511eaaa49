"""What stands at the client for the trunk's trainable parameters: two elements each, whose gradient is a norm.

Whatever a training loop does to gradients before it steps, it does to all of them: it takes a norm over the norms of
all parameters, and multiplies all by one number (clipping, undoing a loss scale), or skips the step when one is not
finite. With one norm for each of the trunk's parameters, in the places that they have in the whole model, all of that
comes out right, to the last bit. The second element tells by what all of them were multiplied: it is a power of two, so
that a product with it is exact, and too small to change any norm. Float16 has no number that small (2^-24 is its
least): there the two elements are a power of two as large as the norm allows and what makes up the rest of it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from splitlearn_core.parts.part import CutModel
from splitlearn_core.split.absent import AbsentLayer
from splitlearn_core.split.layers import find_layers

TINY = 2.0**-60
"""Of the largest norm: a power of two, so that a product with it is exact; its square changes no bit of a sum."""
LEAST = 2.0**-100
"""The least mark: far enough from where float32 ends to be multiplied still."""
NARROW = torch.float16
"""The dtype whose exponents are too few for that."""


class GradientProxies:
    """Stand-ins for the trainable parameters of a trunk.

    Args:
        dtypes: dtype of each parameter by its name in the whole model, in the order that they have there.
        device: where the client's own parameters are.
        names: of the parameters in the order in which the trunk tells their norms; None for that of `dtypes`.
    """

    def __init__(
        self, dtypes: Mapping[str, torch.dtype], device: torch.device, names: Sequence[str] | None = None
    ) -> None:
        self._names = list(dtypes if names is None else names)
        self.parameters = {
            name: nn.Parameter(torch.zeros(2, dtype=dtype, device=device)) for name, dtype in dtypes.items()
        }
        self.first = next(iter(self.parameters.values()), None)
        self._marked = self.first
        """Of whose gradient the second element tells most exactly by what it was multiplied."""
        self._mark = LEAST
        """What that was when it was taken; 0 where no gradient is there that could be multiplied."""

    def install(self, model: CutModel) -> None:
        """Put the stand-ins where the parameters are in the whole model, so that `parameters()` goes over them."""
        for begin, layer in absent_layers(model):
            for full_name, parameter in self.parameters.items():
                if full_name.startswith(begin):
                    layer.stand_in(full_name.removeprefix(begin), parameter)

    def remove(self, model: CutModel) -> None:
        """Take the stand-ins out again."""
        for _, layer in absent_layers(model):
            layer.stand_out()

    @property
    def is_clear(self) -> bool:
        """Whether the loop has cleared the gradients since the last backward, or there were none."""
        return self.first is None or self.first.grad is None

    def take(self, norms_N: torch.Tensor) -> None:
        """Take the norms of the gradients that the trunk has now."""
        norm_of = dict(zip(self._names, norms_N.tolist(), strict=True))
        norms = [norm_of[name] for name in self.parameters]
        beside, largest = mark_beside(norms), -1.0
        for parameter, norm in zip(self.parameters.values(), norms, strict=True):
            is_narrow = parameter.dtype == NARROW
            rest, mark = in_two(norm) if is_narrow else (norm, beside)
            parameter.grad = torch.tensor([rest, mark], dtype=parameter.dtype, device=parameter.device)
            if (exactness := mark if is_narrow else math.inf) > largest:
                self._marked, self._mark, largest = parameter, mark, exactness

    def poison(self) -> None:
        """Take it that the trunk's gradients are NaN: what came to the cut was, and the trunk was not asked."""
        for parameter in self.parameters.values():
            parameter.grad = torch.full_like(parameter, torch.nan)

    @property
    def is_poisoned(self) -> bool:
        """Whether the trunk was not asked for gradients of this update, or those were multiplied by NaN."""
        gradient = None if self.first is None else self.first.grad
        return gradient is not None and not bool(gradient[1].isfinite())

    def scale(self) -> torch.Tensor | None:
        """Return by what all gradients were multiplied since they were taken, a float32 scalar; None for not at all."""
        assert self._marked is not None
        assert self._marked.grad is not None
        if not self._mark:
            return None
        scale = self._marked.grad[1].detach().to("cpu", torch.float32) / self._mark
        return None if scale == 1 else scale

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Hide the gradients from an optimizer: the numbers that stand in for parameters are not to be changed."""
        held = [(p, p.grad) for p in self.parameters.values()]
        for parameter, _ in held:
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, gradient in held:
                parameter.grad = gradient


def mark_beside(norms: list[float]) -> float:
    """Return what stands beside these norms: it grows with them, so that a loss scale of any size can be undone."""
    largest = max((norm for norm in norms if math.isfinite(norm)), default=0.0)
    return max(LEAST, TINY * 2.0 ** math.frexp(largest)[1]) if largest else LEAST


def in_two(norm: float) -> tuple[float, float]:
    """Return two numbers whose norm in float16 is a number of float16, to the last bit; the second is a power of two.

    The rounding of the first moves their norm by less than it is itself, and that is at most half a unit of the norm's
    last place; torch adds squares of float16 up in float32.
    """
    if not norm or not math.isfinite(norm):
        return norm, 0.0
    power = 2.0 ** (math.frexp(norm)[1] - 1)
    return math.sqrt(norm * norm - power * power), power


def absent_layers(model: CutModel) -> list[tuple[str, AbsentLayer]]:
    """Return the layers that live elsewhere, each with what the names of its parameters begin with."""
    name, layers = find_layers(model)
    return [(f"{name}.{index}.", layer) for index, layer in enumerate(layers) if isinstance(layer, AbsentLayer)]
