import re
from pathlib import Path

import pytest

from splitlearn_comm import AsyncComputeClient, GRPCComputeClient
from splitlearn_comm.client import ClientTLS
from splitlearn_comm.client.credentials import Credentials, explained
from tests.support.certificates import Authority

TOKEN = "a-secret-of-alice-0001"


@pytest.mark.parametrize("client", [GRPCComputeClient, AsyncComputeClient])
def test_a_token_is_not_sent_in_the_clear_to_another_machine(client: type[GRPCComputeClient]) -> None:
    with pytest.raises(
        ValueError, match=r"would go to 10\.0\.0\.1:50051 in the clear.*tls=True.*insecure=True"
    ) as refused:
        client("10.0.0.1:50051", token=TOKEN)
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize("address", [["localhost:1", "example.org:2"], ["example.org:2"]])
def test_not_to_any_of_several(address: list[str]) -> None:
    with pytest.raises(ValueError, match=r"would go to example\.org:2"):
        GRPCComputeClient(address, token=TOKEN)


@pytest.mark.parametrize(
    ("address", "credentials"),
    [
        ("10.0.0.1:1", Credentials(token=TOKEN, tls=True)),
        ("10.0.0.1:1", Credentials(token=TOKEN, tls=ClientTLS())),
        ("10.0.0.1:1", Credentials(token=TOKEN, insecure=True)),
        ("10.0.0.1:1", Credentials()),
        ("127.0.0.1:1", Credentials(token=TOKEN)),
        ("unix:/tmp/x", Credentials(token=TOKEN)),
    ],
)
def test_where_it_may_go(address: str, credentials: Credentials) -> None:
    credentials.check(address)


@pytest.mark.parametrize(
    ("token", "why"),
    [
        ("", "the token is empty: .*None to send none"),
        ("read-from-a-file\n", r"ends with a blank or a line break.*token\.strip\(\)"),
        ("two words", "printable ASCII"),
        ("new\nline", "printable ASCII"),
        ("gr\u00fcn", "printable ASCII"),
    ],
)
def test_what_cannot_be_sent_is_told_without_it(token: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as refused:
        GRPCComputeClient("localhost:1", token=token)
    assert not token or token not in str(refused.value)


def test_a_token_is_in_no_repr() -> None:
    client = GRPCComputeClient("localhost:1", token=TOKEN)
    assert TOKEN not in repr(client) + repr(client._settings) + repr(client._settings.credentials)
    client.close()


def test_each_call_has_a_name_of_its_own() -> None:
    first, second = (dict(Credentials(token=TOKEN).metadata()) for _ in range(2))
    assert first["authorization"] == f"Bearer {TOKEN}"
    assert re.fullmatch("[0-9a-f]{16}", first["splitlearn-request-id"])
    assert first["splitlearn-request-id"] != second["splitlearn-request-id"]


def test_a_certificate_goes_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="go together"):
        ClientTLS(certificate=tmp_path / "c")
    with pytest.raises(FileNotFoundError):
        GRPCComputeClient("localhost:1", tls=ClientTLS(ca=tmp_path / "none"))


def test_files_that_are_no_certificates_are_told_when_the_client_is_made(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ValueError, match=r"ca .*ca\.pem: not what TLS needs .*expected PEM files$"):
        GRPCComputeClient("localhost:1", tls=ClientTLS(ca=tmp_path / "ca.pem"))
    certificate, key = Authority(tmp_path).issue("client")
    _, other = Authority(tmp_path, "other").issue("other")
    GRPCComputeClient("localhost:1", tls=ClientTLS(certificate=certificate, key=key)).close()
    with pytest.raises(ValueError, match=r"client\.crt, key .*the key being the certificate's"):
        GRPCComputeClient("localhost:1", tls=ClientTLS(certificate=certificate, key=other))


def test_other_failures_are_no_matter_of_tls() -> None:
    assert explained("failed to connect to all addresses; last error: Connection refused") is None
    assert explained("Socket closed") is None
