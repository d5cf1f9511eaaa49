"""The code on the pages that people read runs as it is written.

`gpt2` is a random model of GPT-2's shape on a stand-in hub; the number of the port is the only thing replaced.
"""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import splitlearn
import splitlearn_comm
import splitlearn_core
import splitlearn_manager
from splitlearn_comm.quickstart import Client
from splitlearn_comm.testing.waiting import eventually
from tests.support.hub import Hub
from tests.support.pages import blocks_of

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "api.md"]
PACKAGES = [splitlearn, splitlearn_core, splitlearn_comm, splitlearn_manager]

PROMISED = [
    'server = ManagedServer("gpt2", port=50051)',
    "server.start()",
    'client = Client("localhost:50051")',
    "output = client.compute(torch.randn(1, 10, 768))",
    'model = SplitModelForCausalLM.from_pretrained("gpt2", trunk="localhost:50051")',
    'model.generate(**tokenizer("Once upon a time", return_tensors="pt"), max_new_tokens=50)',
    'bottom, trunk, top = load_split_model("gpt2", split_points=[2, 10])',
    "logits = top(client.compute(bottom(input_ids)))",
    "hidden, bottom_kv = bottom(ids, attention_mask=m, position_ids=p, past_key_values=bottom_kv, use_cache=True)",
    "hidden, trunk_kv = client.compute(hidden, past_key_values=trunk_kv, use_cache=True)",
    "with client.session() as session:",
    "    hidden = session.step(hidden)",
    "class Double(ComputeFunction):",
    "    def compute(self, tensor): return tensor * 2",
    "with GRPCComputeServer(Double(), port=0) as server:",
    "    Client(server.address).compute(torch.ones(3))",
    'run = model.start_training(train=("bottom", "trunk", "top"), lora=LoraConfig(r=8), optimizer="adamw", lr=2e-4)',
    "model(input_ids=x, labels=x).loss.backward()",
    "run.optimizer.step(); run.optimizer.zero_grad()",
    "Trainer(model, args, train_dataset=data, optimizers=(run.optimizer, None)).train()",
    'run.save_checkpoint("tag"); run.save_adapter("dir")',
]
"""Lines that are promised to work from the first version on."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def page_process(hub: Hub, page: Path, line: str, port: int, directory: Path = ROOT) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.support.pages", str(page), line, str(port)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**hub.environment(), "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    with subprocess.Popen(command, env=environment, cwd=directory, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@contextmanager
def page_server(hub: Hub, page: Path, port: int) -> Iterator[None]:
    """Run the page's own server until the block ends; then a signal has to end it with status 0."""
    (block,) = [block for block in blocks_of(page) if block.mark == "server"]
    with page_process(hub, page, str(block.line), port) as process, Client(f"localhost:{port}") as client:

        def is_serving() -> bool:
            assert process.poll() is None, process.communicate()[1]
            try:
                return client.health()
            except ConnectionError:
                return False

        eventually(is_serving, timeout_s=200)
        yield
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == 0, errors


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_runs_as_written(hub_with_gpt2: Hub, page: Path, tmp_path: Path) -> None:
    port = free_port()
    with (
        page_server(hub_with_gpt2, page, port),
        page_process(hub_with_gpt2, page, "all", port, tmp_path) as process,
    ):
        errors = process.communicate(timeout=400)[1]
        assert process.returncode == 0, errors


def test_nothing_is_left_out() -> None:
    assert [(page.name, b.line) for page in PAGES for b in blocks_of(page) if b.mark == "not run"] == []


def test_every_promised_line_is_there() -> None:
    lines = [re.split(r"\s{2,}#", line.rstrip())[0] for b in blocks_of(PAGES[1]) for line in b.code.splitlines()]
    assert [line for line in PROMISED if line not in lines] == []


def test_every_public_name_is_in_the_reference() -> None:
    words = set(re.findall(r"\w+", (ROOT / "docs" / "api.md").read_text()))
    assert {
        f"{package.__name__}.{name}" for package in PACKAGES for name in package.__all__ if name not in words
    } == set()
