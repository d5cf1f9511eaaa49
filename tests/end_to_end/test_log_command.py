"""`splitlearn serve --log-format`: what is in the log of a server in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from splitlearn_comm import GRPCComputeClient, InvalidRequestError
from tests.support.models import save_gpt2


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--log-format", "text"]], ids=["by itself", "text"])
def test_where_nobody_looks_the_log_is_json_unless_told(tmp_path: Path, options: list[str]) -> None:
    save_gpt2(tmp_path / "tiny")
    command = [sys.executable, "-m", "splitlearn", "serve", str(tmp_path / "tiny"), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().removeprefix("listening at ").strip()
            with GRPCComputeClient(address) as client, client.session() as session, pytest.raises(InvalidRequestError):
                session.step(torch.ones(1, 2, 31))
            process.terminate()
            log = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    refusal = next(line for line in log.splitlines() if "refused step 1" in line)
    if options:
        assert refusal.startswith("I ")
        return
    told = json.loads(refusal)
    assert (told["session"], told["step"], told["level"]) == (session.session_id, 1, "info")
    assert told["request"] in told["message"]
    assert [json.loads(line)["logger"] for line in log.splitlines()]
