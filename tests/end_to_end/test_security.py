"""TLS and tokens from the command line and the front door."""

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from splitlearn import SplitModelForCausalLM
from splitlearn.cli.security import CallerOptions, DoorOptions, check_door
from splitlearn.errors import OptionError
from splitlearn_comm import AuthenticationError, GRPCComputeClient, GRPCComputeServer, GRPCServerConfig
from splitlearn_comm.client import ClientTLS
from splitlearn_comm.server import ClientLimits, ServerTLS, TokenFile
from splitlearn_comm.testing import Identity
from splitlearn_manager import ManagedServer, ServerConfig
from splitlearn_manager.settings import settings_from
from tests.support.certificates import Authority
from tests.support.models import save_gpt2

TOKEN = "a-secret-of-alice-0001"
IDS = torch.tensor([[5, 6, 7, 8]])
SPLITLEARN = [sys.executable, "-m", "splitlearn"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_gpt2(directory)
    return str(directory)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text(f"alice:{TOKEN}\n")
    return path


@pytest.fixture(scope="module")
def address(model: str, authority: Authority, tokens: Path) -> Iterator[str]:
    certificate, key = authority.issue("server")
    options = ["--tls-certificate", certificate, "--tls-key", key, "--token-file", tokens]
    command = [*SPLITLEARN, "serve", model, "--port", "0", "--log-level", "warning", *map(str, options)]
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        stack.callback(process.terminate)
        assert process.stdout is not None
        yield process.stdout.readline().removeprefix("listening at ").strip()


@pytest.mark.slow
def test_a_model_over_tls_with_a_token_generates_what_the_whole_one_does(
    address: str, model: str, authority: Authority
) -> None:
    connection = {"token": TOKEN, "tls": ClientTLS(ca=authority.certificate)}
    split = SplitModelForCausalLM.from_pretrained(model, trunk=address, connection=connection)
    whole = SplitModelForCausalLM.from_pretrained(model)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(split.generate(IDS, **options), whole.generate(IDS, **options))


def test_a_model_without_the_token_is_refused(address: str, model: str, authority: Authority) -> None:
    with pytest.raises(AuthenticationError, match="no valid token"):
        SplitModelForCausalLM.from_pretrained(
            model, trunk=address, connection={"tls": ClientTLS(ca=authority.certificate)}
        )


def test_a_connection_needs_a_server(model: str) -> None:
    with pytest.raises(TypeError, match="connection= goes with the address of a server"):
        SplitModelForCausalLM.from_pretrained(model, connection={"token": TOKEN})


def test_options_of_a_client(authority: Authority) -> None:
    assert CallerOptions().connection("localhost:1") == {}
    full = CallerOptions(token=TOKEN, tls_ca=authority.certificate).connection("192.0.2.1:1")
    assert full == {"token": TOKEN, "tls": ClientTLS(ca=authority.certificate)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (CallerOptions(tls=True, tls_certificate=Path("c")), "--tls-certificate and --tls-key go together"),
        (CallerOptions(tls_ca=Path("none.pem")), "--tls-ca none.pem cannot be read: No such file or directory"),
        (CallerOptions(token=TOKEN), "--token: the token would go to 192.0.2.1:1 in the clear"),
        (CallerOptions(token="two words", tls=True), "--token: a token consists of printable ASCII characters"),
    ],
)
def test_options_of_a_client_that_cannot_be(options: CallerOptions, words: str) -> None:
    with pytest.raises(OptionError, match=re.escape(words)):
        options.connection("192.0.2.1:1")


def server_config(host: str, options: DoorOptions) -> ServerConfig:
    """Do with these options of `splitlearn serve` what it does."""
    config = settings_from(("the command line", {"server": options.tree()})).server
    check_door(host, config)
    return config


def test_serve_says_in_its_own_words_what_is_missing(tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"--host 0\.0\.0\.0 can be reached .* or say --allow-insecure"):
        server_config("0.0.0.0", DoorOptions())
    with pytest.raises(OptionError, match="--tls-certificate and --tls-key go together"):
        server_config("127.0.0.1", DoorOptions(tls_key=tokens))
    with pytest.raises(OptionError, match="--tls-client-ca goes with --tls-certificate"):
        server_config("127.0.0.1", DoorOptions(tls_client_ca=tokens))
    with pytest.raises(OptionError, match=r"--token-file: .*No such file"):
        server_config("127.0.0.1", DoorOptions(token_file=tmp_path / "none"))
    assert server_config("0.0.0.0", DoorOptions(allow_insecure=True)).allow_insecure


@pytest.mark.parametrize(
    ("host", "config", "match"),
    [
        ("0.0.0.0", ServerConfig(), "neither TLS nor tokens"),
        ("127.0.0.1", ServerConfig(tokens={"alice": "short"}), "has 5 characters"),
    ],
)
def test_an_open_door_is_found_before_a_model_is_looked_for(host: str, config: ServerConfig, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ManagedServer("no/such-model", host=host, port=0, config=config)


def test_a_trunk_on_a_unix_socket(model: str, tmp_path: Path) -> None:
    whole = SplitModelForCausalLM.from_pretrained(model)
    with ManagedServer(model, host=f"unix:{tmp_path}/trunk.sock") as server:
        split = SplitModelForCausalLM.from_pretrained(model, trunk=server.address)
        with torch.no_grad():
            assert torch.equal(split(IDS).logits, whole(IDS).logits)


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "security.md").read_text()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the page's commands need openssl")
def test_the_certificates_of_the_page_are_of_use(tmp_path: Path) -> None:
    (commands,) = re.findall(r"```sh\n(openssl req .*?)```", PAGE, re.DOTALL)
    subprocess.run(["sh", "-ec", commands], cwd=tmp_path, check=True, capture_output=True)
    config = GRPCServerConfig(tls=ServerTLS(certificate=tmp_path / "server.pem", key=tmp_path / "server.key"))
    with (
        GRPCComputeServer(Identity(), port=0, config=config) as server,
        GRPCComputeClient(server.address, tls=ClientTLS(ca=tmp_path / "ca.pem")) as client,
    ):
        assert client.health()


def test_the_tokens_of_the_page_are_of_use(tmp_path: Path) -> None:
    (program,) = re.findall(r'python -c "(import secrets.*)"\n', PAGE)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    token, line = ended.stdout.split()
    (tmp_path / "tokens").write_text(line)
    config = GRPCServerConfig(tokens=TokenFile(tmp_path / "tokens"))
    with (
        GRPCComputeServer(Identity(), port=0, config=config) as server,
        GRPCComputeClient(server.address, token=token) as client,
    ):
        assert client.health()


def test_the_defaults_of_the_page_are_the_defaults() -> None:
    shown = {"256", "1024", "20,000", "4e9", "16 GiB"}
    assert set(re.findall(r"^\| `(?:max|requests|bytes)_\w+` \| (.*?) \|", PAGE, re.MULTILINE)) == shown
    assert ClientLimits() == ClientLimits(
        max_sessions=256, max_calls=1024, requests_per_s=20_000, bytes_per_s=4e9, max_bytes_held=16 << 30
    )
