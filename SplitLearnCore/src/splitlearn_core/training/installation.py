"""What a training changes of the client's model, and how it is taken out again."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from torch import nn

from splitlearn_core.training.choice import Trainable
from splitlearn_core.training.proxies import GradientProxies

if TYPE_CHECKING:
    from splitlearn_core.parts.client import SplitModel


class Installation:
    """The adapter and the trunk's proxies in a client model, and which of its parameters train.

    Args:
        model: changed in place, until `remove`.
        trainable: what trains.
        proxies: of the trunk's parameters.
    """

    def __init__(self, model: SplitModel, trainable: Trainable, proxies: GradientProxies) -> None:
        self._model = model
        self._adapter = trainable.adapter
        self._proxies = proxies
        self._trained_before = {id(p): p.requires_grad for p in model.parameters()}
        model.requires_grad_(False)
        if trainable.adapter is not None:
            trainable.adapter.put_into(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trainable.own)
        proxies.install(model)

    def parameters(self, names: Collection[str]) -> list[nn.Parameter]:
        """Return those of some names, proxies among them, in the order of the whole model."""
        return [parameter for name, parameter in self._model.named_parameters() if name in names]

    def remove(self) -> None:
        """Leave the model as it was, with the weights that it has now. May be called twice."""
        self._proxies.remove(self._model)
        if self._adapter is not None:
            self._adapter.take_out_of(self._model)
        for parameter in self._model.parameters():
            parameter.requires_grad_(self._trained_before[id(parameter)])
            parameter.grad = None
