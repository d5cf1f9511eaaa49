"""Clients train models that have a process of their own as they train one in the server's, within the same limits."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from splitlearn import SplitModelForCausalLM
from splitlearn_comm import ResourceExhaustedError, UnsupportedOperationError
from splitlearn_core import SplitModel
from splitlearn_core.training.seeding import seeded_dropout
from splitlearn_manager import ModelServer, ModelSpec, ServerConfig
from splitlearn_manager.control import ControlClient
from splitlearn_manager.serving import make_server
from splitlearn_manager.settings import settings_from
from tests.support.checkpoints import load_whole
from tests.support.models import save_gpt2
from tests.support.training import assert_same, fit, without_prefix

torch.set_num_threads(1)


def lora() -> LoraConfig:
    return LoraConfig(r=2, target_modules=["c_attn", "c_proj"], lora_dropout=0.1)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_gpt2(directory)
    return directory


@pytest.fixture(scope="module")
def address(directory: Path) -> Iterator[str]:
    """A server that lets two clients train adapters; of its models `whole` says something else."""
    whole = ModelSpec(
        name="whole", model=str(directory), num_threads=1, max_trainings=1, allow_full_training=True, kv_bytes=0
    )
    with ModelServer([whole], port=0, config=ServerConfig(max_trainings=2)) as server:
        with ControlClient(server.address) as operator:
            operator.load_model("adapters", {"model": str(directory), "num_threads": 1})
        yield server.address


@contextmanager
def client(directory: Path, address: str, name: str = "") -> Iterator[SplitModel]:
    connection = {"model": name} if name else {}
    model = SplitModelForCausalLM.from_pretrained(str(directory), trunk=address, connection=connection)
    try:
        yield model
    finally:
        if model.run is not None:
            model.run.close()
        model.trunk.close()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_an_adapter_is_that_of_the_unsplit_model(directory: Path, address: str) -> None:
    torch.manual_seed(5)
    whole = get_peft_model(load_whole(directory), copy.deepcopy(lora()))
    optimizer = torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad], lr=1e-2)
    with seeded_dropout(whole.base_model.model, 3):
        expected = fit(whole, optimizer, clip=0.05)
    with client(directory, address, "adapters") as model:
        torch.manual_seed(5)
        run = model.start_training(lora=lora(), lr=1e-2)
        with seeded_dropout(model, 3):
            assert fit(model, run.optimizer, clip=0.05) == expected
        assert_same(run, whole, without_prefix)


@pytest.mark.slow
def test_all_weights_where_the_model_allows_it(directory: Path, address: str) -> None:
    whole = load_whole(directory).requires_grad_(True)
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1, momentum=0.9)
    with seeded_dropout(whole, 3):
        expected = fit(whole, optimizer, clip=1.0)
    with client(directory, address, "whole") as model:
        run = model.start_training(optimizer="sgd", lr=0.1, momentum=0.9)
        with seeded_dropout(model, 3):
            assert fit(model, run.optimizer, clip=1.0) == expected
        assert_same(run, whole)


@pytest.mark.slow
def test_all_weights_where_it_is_not_allowed(directory: Path, address: str) -> None:
    with client(directory, address, "adapters") as model:
        with pytest.raises(UnsupportedOperationError, match="allow_full_training"):
            model.start_training(optimizer="sgd", lr=0.1)
        model.start_training(lora=lora(), lr=0.1).close()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "most"), [("adapters", 2), ("whole", 1)])
def test_as_many_as_the_model_says_or_else_the_server(directory: Path, address: str, name: str, most: int) -> None:
    """Also for a model that an operator has loaded."""
    trains(directory, address, most, name)


def trains(directory: Path, address: str, most: int, name: str = "") -> None:
    """Check how many clients may train at once."""
    if not most:
        with (
            client(directory, address, name) as model,
            pytest.raises(ResourceExhaustedError, match=r"\d clients train here.*max_trainings"),
        ):
            model.start_training(lora=lora(), lr=0.1)
        return
    with client(directory, address, name) as model:
        model.start_training(lora=lora(), lr=0.1)
        trains(directory, address, most - 1, name)


def test_the_only_model_of_a_server_in_its_own_process(directory: Path) -> None:
    models = [{"model": str(directory), "max_trainings": 1}]
    file = {"port": 0, "server": {"max_trainings": 3, "allow_full_training": True}, "models": models}
    settings = settings_from(("file", file))
    assert not settings.managed
    with make_server(settings) as server:
        trains(directory, server.address, 1)
        with client(directory, server.address) as model:
            model.start_training(optimizer="sgd", lr=0.1).close()
