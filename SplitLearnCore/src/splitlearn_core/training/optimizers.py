"""Optimizers by name, and the one at the client, whose `step()` steps both sides."""

import functools
import inspect
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn, optim

from splitlearn_core.errors import TrainingError
from splitlearn_core.training.guard import Guard
from splitlearn_core.training.proxies import GradientProxies

logger = logging.getLogger(__name__)
UpdateTrunk = Callable[[list[dict[str, Any]]], None]
"""Does one step of the trunk's optimizer with the options of all groups, as they are now."""


def optimizer_class(name: str) -> type[optim.Optimizer]:
    """Return a class of `torch.optim` by its name, in any case.

    Raises:
        TrainingError: there is none, or it calls the loss several times for a step (LBFGS), which no trunk can.
    """
    known = {
        key.lower(): value
        for key, value in vars(optim).items()
        if isinstance(value, type)
        and issubclass(value, optim.Optimizer)
        and value not in (optim.Optimizer, optim.LBFGS)
    }
    if name.lower() not in known:
        names = ", ".join(each.__name__ for each in known.values())
        raise TrainingError(f"there is no optimizer {name!r} for a split model; there are {names}")
    return known[name.lower()]


def defaults_of(base: type[optim.Optimizer], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of an optimizer's group: those given, and the class's own for the others.

    Raises:
        TrainingError: the class does not take one of them.
    """
    try:
        return dict(base([nn.Parameter(torch.zeros(1))], **options).defaults)
    except (TypeError, ValueError) as error:
        raise TrainingError(f"{base.__name__}: {error}") from error


def check_options(base: type[optim.Optimizer], options: Mapping[str, Any]) -> None:
    """Look at the options of a group as the class looks at its own: of groups torch looks at nothing itself.

    Raises:
        TrainingError: a value that the class does not take.
    """
    taken = inspect.signature(base).parameters
    defaults_of(base, {name: value for name, value in options.items() if name in taken and name != "params"})


def make_optimizer(
    base: type[optim.Optimizer],
    groups: Iterable[Mapping[str, Any]],
    proxies: GradientProxies,
    update_trunk: UpdateTrunk,
    guard: Guard,
) -> optim.Optimizer:
    """Make an optimizer of the given class whose `step()` first steps the trunk's.

    Args:
        base: class of `torch.optim`.
        groups: as torch takes them; the parameters of the trunk are there as proxies.
        proxies: of the trunk's parameters.
        update_trunk: called once a step.
        guard: says which updates are not done, and by what rates are multiplied.
    """

    class BothSides(base):  # type: ignore[misc, valid-type]
        @functools.wraps(base.step)
        def step(self, closure: Callable[[], float] | None = None) -> Any:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            if (finding := guard.find(is_finite=gradients_are_finite(self))) is not None:
                logger.warning("an update is left out (%s): %s; %r", finding.reaction, finding.sentence, guard)
                return loss
            with rates_times(self, guard.rate_factor):
                # The trunk first: it may fail, and then neither side has moved.
                if proxies.parameters:
                    update_trunk([said_of(group) for group in self.param_groups])
                with proxies.aside():
                    unhooked(base.step)(self)
            return loss

    BothSides.__name__ = BothSides.__qualname__ = base.__name__
    return BothSides(list(groups))


def gradients_are_finite(optimizer: optim.Optimizer) -> bool:
    """Look at all gradients, those of proxies too, which are the norms of the trunk's."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return not gradients or bool(nn.utils.get_total_norm(gradients).isfinite())


@contextmanager
def rates_times(optimizer: optim.Optimizer, factor: float) -> Iterator[None]:
    """Multiply the rates of all groups for one step. A schedule computes from its own: it would undo it otherwise."""
    if factor == 1.0:
        yield
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * factor
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def unhooked(step: Any) -> Any:
    """Return an optimizer's step without the wrapper that calls hooks, which the outer step has already."""
    while getattr(step, "hooked", False):
        step = step.__wrapped__
    return step


def said_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of an optimizer's group can be said to another process: numbers, words, truth values and lists."""
    said = {name: plain(value) for name, value in group.items() if name not in ("params", "param_names")}
    return {name: value for name, value in said.items() if value is not NotImplemented}


def plain(value: Any) -> Any:
    """Return a value as JSON has it, or NotImplemented."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, (tuple, list)):
        items = [plain(item) for item in value]
        return NotImplemented if NotImplemented in items else items
    if isinstance(value, float) and not math.isfinite(value):
        raise TrainingError(f"an optimizer's options are finite numbers; got {value}")
    return value if value is None or isinstance(value, (bool, int, float, str)) else NotImplemented
