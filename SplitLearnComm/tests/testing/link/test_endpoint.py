import pytest

from splitlearn_comm.testing.link.endpoint import TcpEndpoint, UnixEndpoint, endpoint_of


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("localhost:50051", TcpEndpoint("localhost", 50051)),
        ("[::1]:7", TcpEndpoint("::1", 7)),
        ("unix:/run/a.sock", UnixEndpoint("/run/a.sock")),
        ("unix:///run/a.sock", UnixEndpoint("/run/a.sock")),
        ("unix:a.sock", UnixEndpoint("a.sock")),
    ],
)
def test_addresses_are_read_as_grpc_writes_them(address: str, expected: object) -> None:
    endpoint = endpoint_of(address)
    assert endpoint == expected
    assert endpoint_of(str(endpoint)) == endpoint


@pytest.mark.parametrize("address", ["", "localhost", ":50051", "localhost:port", "localhost:"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="expected an address like"):
        endpoint_of(address)
