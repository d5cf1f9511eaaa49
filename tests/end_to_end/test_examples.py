"""Every example, as the process that its first lines say how to start."""

import os
import re
import runpy
import signal
import urllib.request
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from splitlearn_comm import GRPCComputeClient, ResourceExhaustedError
from splitlearn_core import load_tokenizer
from splitlearn_core.builtin import builtin_directory
from tests.support.checkpoints import load_whole
from tests.support.hub import Hub
from tests.support.programs import ROOT, run_program, serving_program

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run_example(name: str, *arguments: str, hub: Hub | None = None, **variables: str) -> str:
    """Run an example with a hub, or offline; returns what it printed."""
    environment = {**hub.environment(), **variables} if hub else None
    result = run_program([f"examples/{name}.py", *arguments], environment)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout


def greedy_text(prompt: str, num_tokens: int) -> str:
    """What the unsplit built-in model says."""
    tokenizer = load_tokenizer("builtin")
    encoded = tokenizer(prompt, return_tensors="pt")
    whole = load_whole(builtin_directory())
    tokens = whole.generate(**encoded, max_new_tokens=num_tokens, do_sample=False, pad_token_id=0, eos_token_id=None)
    return str(tokenizer.decode(tokens[0]))


@pytest.mark.slow
def test_quickstart_and_generation_by_hand() -> None:
    with serving_program(["examples/quickstart_server.py", "builtin", "0"], ended_by=signal.SIGINT) as address:
        said = run_example("quickstart_client", address)
        by_hand = run_example("generate_with_cache", address)
    first_line, _, text = said.partition("\n\n")
    assert first_line == f"# layers 2 to 5 of 8 run at {address}"
    assert greedy_text("def read_lines(path):\n", 60).startswith(text.strip())
    assert len(text) > len("def read_lines(path):\n")
    assert by_hand == greedy_text("import os\n\n\ndef main():\n", 40) + "\n"


@pytest.mark.slow
def test_generation_by_hand_brings_a_server_of_its_own() -> None:
    assert run_example("generate_with_cache").startswith("import os\n\n\ndef main():\n")


@pytest.mark.slow
def test_split_learning_minimal() -> None:
    lines = run_example("split_learning_minimal").splitlines()
    losses = [float(line.rpartition(" ")[2]) for line in lines if line.startswith("step ")]
    crossing = [line for line in lines if line.startswith("  to the trunk: hidden states [1, ")]
    assert len(losses) == len(crossing) == 12
    assert all("and from it: gradients [1, " in line for line in crossing)
    assert losses[-1] < losses[0] / 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_loop", "train_with_trainer", "train_split_trainer"])
def test_fine_tuning(name: str, tmp_path: Path) -> None:
    with serving_program(["examples/quickstart_server.py", "builtin", "0"], ended_by=signal.SIGINT) as address:
        result = run_program([str(ROOT / "examples" / f"{name}.py"), address], directory=tmp_path)
    assert result.returncode == 0, result.stderr
    losses = [float(loss) for loss in re.findall(r"(?<!eval_)loss'?:? '?([\d.]+)", result.stdout)]
    assert len(losses) in (4, 5, 12)
    assert losses[-1] < losses[0]
    plain = PeftModel.from_pretrained(load_whole(builtin_directory()), str(tmp_path / "adapter"))
    assert any(p.abs().sum() > 0 for name, p in plain.named_parameters() if "lora_B" in name)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_gpt2_client(hub_with_gpt2: Hub) -> None:
    torch.manual_seed(0)
    serve = ["-m", "splitlearn", "serve", "gpt2", "--port", "0", "--log-level", "warning"]
    with serving_program(serve, hub_with_gpt2.environment()) as address:
        said = run_example("gpt2_client", "Once upon", hub=hub_with_gpt2, GPT2_TRUNK_SERVER=address)
    assert said.startswith("Once upon")


@pytest.mark.slow
def test_simple_server_and_client() -> None:
    with serving_program(["examples/simple_server.py", "0"], ended_by=signal.SIGINT) as address:
        lines = run_example("simple_client", address).splitlines()
    assert lines[0] == f"softmax at {address}: probabilities along the last dimension"
    assert lines[1] == str(torch.softmax(torch.tensor([0.0, 1.0, 2.0]), dim=-1))
    steps = [re.fullmatch(r"\[1, 8, 1024\] in .* s, of which .* s on the way; (\d+) bytes sent", s) for s in lines[2:5]]
    # In bfloat16, two bytes an element, and the few fields around them.
    assert all(step and 2 * 8 * 1024 < int(step[1]) < 2 * 8 * 1024 + 100 for step in steps)
    assert lines[5].startswith("INVALID_ARGUMENT: NaN or infinity among the inputs: ")
    assert lines[6:] == ["after the refusal: (1, 4, 4)"]


@pytest.mark.slow
def test_custom_service() -> None:
    with (
        serving_program(["examples/custom_service.py", "serve", "0"]) as address,
        GRPCComputeClient(address) as client,
    ):
        pictures, refusal = run_example("custom_service", "call", address).splitlines()
        grey_BCHW = client.compute(torch.full((2, 30, 40, 3), 51, dtype=torch.uint8))
    assert pictures.startswith("[3, 480, 640, 3] became [3, 3, 224, 224], mean ")
    assert refusal == "expected a batch of pictures, uint8 [B, H, W, 3], came torch.float32 [3, 480, 640, 3]"
    wanted_C = (0.2 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(grey_BCHW, wanted_C[None, :, None, None].expand(2, 3, 224, 224))


@pytest.mark.slow
def test_production_setup() -> None:
    variables = {"MODEL_ID": "builtin", "PORT": "0", "METRICS_PORT": "0", "DEVICE": "cpu", "LOG_LEVEL": "WARNING"}
    environment = {**os.environ, **variables, "SPLITLEARN_SERVER_MAX_SESSIONS": "1"}
    with serving_program(["examples/production_setup.py"], environment) as line:
        address, metrics_url = line.split()
        with urllib.request.urlopen(metrics_url) as page:
            assert b"splitlearn_" in page.read()
        with GRPCComputeClient(address) as client, client.session():
            assert client.get_info().name == "builtin"
            with pytest.raises(ResourceExhaustedError, match="the server has 1 sessions open"):
                client.session()


@pytest.mark.parametrize("variable", ["MODEL_TYPE", "ENABLE_METRICS"])
def test_production_setup_says_what_a_variable_may_be(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    main = runpy.run_path("examples/production_setup.py")["main"]
    monkeypatch.setenv(variable, "maybe")
    with pytest.raises(SystemExit, match=f"^{variable} must be one of "):
        main()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60


def test_every_example_is_run_here() -> None:
    own = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES if path.stem not in own] == []
    assert len(EXAMPLES) >= 8
