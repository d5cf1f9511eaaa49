"""A trunk in this process keeps the contract of a port."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from splitlearn_core import LocalTrunk, Trunk, TrunkPort
from splitlearn_core.testing import TrunkPortContract, random_hidden, tiny_trunk

torch.set_num_threads(1)


class TestLocalTrunk(TrunkPortContract):
    @contextmanager
    def open_port(self, trunk: Trunk) -> Iterator[TrunkPort]:
        with LocalTrunk(trunk) as port:
            yield port


def test_gradients_flow_through_a_local_trunk() -> None:
    hidden_BTH = random_hidden(1, 3).requires_grad_()
    LocalTrunk(tiny_trunk()).compute(hidden_BTH, training=True).sum().backward()
    assert hidden_BTH.grad is not None
    assert hidden_BTH.grad.abs().sum() > 0


@pytest.mark.parametrize("training", [True, False])
def test_training_mode_travels_with_the_call(training: bool) -> None:
    trunk = tiny_trunk()
    trunk.train(not training)
    LocalTrunk(trunk).compute(random_hidden(1, 2), training=training)
    assert trunk.training is training
