"""`splitlearn serve --metrics-port`: where the metrics are is said behind where the server listens."""

import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch

from splitlearn_comm import GRPCComputeClient
from tests.support.models import save_gpt2


@pytest.mark.slow
def test_serve_says_where_its_metrics_are(tmp_path: Path) -> None:
    save_gpt2(tmp_path / "tiny")
    command = [sys.executable, "-m", "splitlearn", "serve", str(tmp_path / "tiny"), "--port", "0"]
    command += ["--metrics-port", "0", "--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().removeprefix("listening at ").strip()
            url = process.stdout.readline().removeprefix("metrics at ").strip()
            with GRPCComputeClient(address) as client, client.session() as session:
                session.step(torch.ones(1, 2, 32))
                with urllib.request.urlopen(url, timeout=20) as page:
                    assert 'splitlearn_steps_total{action="forward",code="OK"} 1.0' in page.read().decode()
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
