"""All weights of a trunk in float16 or bfloat16 train as those of the whole model do in that dtype, to the last bit."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from splitlearn_core import LocalTrunk
from splitlearn_core.training.proxies import GradientProxies
from tests.support.families import tiny_split
from tests.support.training import NUM_STEPS, assert_same, fit

SGD = {"lr": 0.1, "momentum": 0.9}


def both(family: str, dtype: torch.dtype, **options: Any) -> tuple[Any, nn.Module, torch.optim.Optimizer]:
    """A run over all weights in a dtype, and the whole model with the same optimizer."""
    split = tiny_split(family)
    whole = copy.deepcopy(split.whole).to(dtype).requires_grad_(True)
    client: Any = copy.deepcopy(split.client).to(dtype)
    client.trunk = LocalTrunk(copy.deepcopy(split.trunk).to(dtype))
    return client.start_training(optimizer="SGD", **SGD, **options), whole, torch.optim.SGD(whole.parameters(), **SGD)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_all_weights(family: str, dtype: torch.dtype, clip: float | None) -> None:
    run, whole, optimizer = both(family, dtype)
    before = run.passes.training.read_state()
    expected = fit(whole, optimizer, clip)
    assert fit(run.model, run.optimizer, clip) == expected
    assert run.update_id == NUM_STEPS
    assert_same(run, whole)
    learned = run.passes.training.read_state()
    assert any(not torch.equal(learned[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("train", [("bottom", "trunk", "top"), ("trunk",)])
def test_a_scaler_refuses_gradients_of_float16_as_it_does_of_the_whole_model(train: tuple[str, ...]) -> None:
    run, whole, optimizer = both("llama", torch.float16, train=train)
    for model, each in ((whole, optimizer), (run.model, run.optimizer)):
        with pytest.raises(ValueError, match="unscale FP16 gradients"):
            fit(model, each, clip=1.0, scaler=torch.amp.GradScaler("cpu", init_scale=4.0))
    assert run.update_id == 0


def test_every_norm_of_float16_stands_for_itself() -> None:
    norms = torch.arange(0x7C00, dtype=torch.int16).view(torch.float16)  # all that are finite
    proxies = GradientProxies({f"p{index}": torch.float16 for index in range(len(norms))}, torch.device("cpu"))
    proxies.take(norms)
    gradients = [p.grad for p in proxies.parameters.values() if p.grad is not None]
    assert torch.equal(torch.stack(torch._foreach_norm(gradients)), norms)
    assert torch.equal(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]), norms)


@pytest.mark.parametrize("norms", [(1.5, 3.0, 0.0), (2.0**-3, 2.0**-20), (60000.0, 1.0)])
@pytest.mark.parametrize("scale", [1.0, 0.05, 1 / 3, 2.0**-9])
def test_by_what_gradients_of_float16_were_multiplied_is_read_from_the_largest(
    norms: tuple[float, ...], scale: float
) -> None:
    proxies = GradientProxies({f"p{index}": torch.float16 for index in range(len(norms))}, torch.device("cpu"))
    proxies.take(torch.tensor(norms))
    factor = torch.tensor(scale, dtype=torch.float16)
    for parameter in proxies.parameters.values():
        assert parameter.grad is not None
        parameter.grad.mul_(factor)
    assert proxies.scale() == (None if scale == 1 else factor.float())


def test_beside_other_dtypes_it_is_read_from_these() -> None:
    proxies = GradientProxies({"narrow": torch.float16, "wide": torch.float32}, torch.device("cpu"))
    proxies.take(torch.tensor([1.0, 0.0]))
    for parameter in proxies.parameters.values():
        assert parameter.grad is not None
        parameter.grad.mul_(1 / 3)
    assert proxies.scale() == torch.tensor(1 / 3)


def test_where_no_gradient_is_there_nothing_was_multiplied() -> None:
    proxies = GradientProxies({"only": torch.float16}, torch.device("cpu"))
    proxies.take(torch.tensor([0.0]))
    assert proxies.scale() is None
    assert not proxies.is_poisoned
