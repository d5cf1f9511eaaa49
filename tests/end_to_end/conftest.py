"""What several of these tests use."""

import shutil
from collections.abc import Iterator

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from splitlearn_comm.quickstart import Client
from splitlearn_core import load_tokenizer
from splitlearn_core.builtin import builtin_directory
from tests.support.checkpoints import save_tiny
from tests.support.hub import Hub
from tests.support.served import Served
from tests.support.trunk_process import TrunkProcess

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="session")
def hub_with_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub that has a random model under the id `gpt2`: 12 layers of width 768, and the tokenizer of our own model."""
    directory = tmp_path_factory.mktemp("gpt2")
    config = GPT2Config(vocab_size=len(load_tokenizer("builtin")), eos_token_id=0, bos_token_id=0)
    GPT2LMHeadModel(config).to(torch.float16).save_pretrained(directory)
    for name in TOKENIZER_FILES:
        shutil.copy(builtin_directory() / name, directory)
    home = tmp_path_factory.mktemp("home")
    with Hub(home) as hub:
        hub.publish("gpt2", directory)
        yield hub
    for folder in (directory, home):
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def served(trunks: TrunkProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A tiny model whose trunk is served in another process."""
    directory = save_tiny("gpt2", tmp_path_factory.mktemp("served") / "tiny")
    with trunks.serving(directory) as address, Client(address) as client:
        yield Served(directory, address, client)


@pytest.fixture
def serves_on(served: Served) -> Iterator[None]:
    """After whatever a test did, a good call and a good session are answered."""
    yield
    hidden_BTH = torch.randn(2, 3, 32)
    with served.client.session() as session:
        torch.testing.assert_close(session.step(hidden_BTH), served.client.compute(hidden_BTH))
