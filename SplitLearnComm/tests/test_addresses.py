import re

import pytest

from splitlearn_comm import AddressBook
from splitlearn_comm.addresses import check_address, is_loopback, joined, stays_here, unix_path
from splitlearn_comm.quickstart import Client


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "LOCALHOST", "::1", "[::1]"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    assert stays_here(joined(host.strip("[]"), 50051))


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org", "127.0.0.1.nip.io", ""]
)
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)
    assert not stays_here(joined(host, 50051))


@pytest.mark.parametrize(
    "address",
    [
        "unix:/tmp/x.sock", "unix:x.sock", "unix:///tmp/x.sock", "unix-abstract:x", "ipv4:127.0.0.1:50051",
        "ipv6:[::1]:50051", "dns:localhost:50051", "dns:///localhost:50051", "localhost",
    ],
)  # fmt: skip
def test_stays_on_this_machine(address: str) -> None:
    assert stays_here(address)


@pytest.mark.parametrize(
    "address", ["ipv4:10.0.0.1:50051", "dns:///example.org:443", "dns://127.0.0.1/example.org:443", "http://localhost"]
)
def test_leaves_this_machine(address: str) -> None:
    assert not stays_here(address)


def test_the_path_of_a_unix_socket() -> None:
    assert [unix_path(f"unix:{path}") for path in ("/a/b", "a/b", "///a/b")] == ["/a/b", "a/b", "/a/b"]


def test_interface_and_port() -> None:
    assert joined("::1", 5) == "[::1]:5"
    assert joined("localhost", 5) == "localhost:5"
    assert joined("unix:/tmp/x", 5) == "unix:/tmp/x"


@pytest.mark.parametrize(
    "address",
    [
        "localhost:50051", "127.0.0.1:1", "[::1]:50051", "[fe80::1%eth0]:50051", "a.b-c_d.example.org:65535",
        "unix:/tmp/x.sock", "unix:x.sock", "unix-abstract:x", "dns:localhost:50051", "dns:///localhost:50051",
        "ipv4:127.0.0.1:50051", "ipv4:127.0.0.1:1,127.0.0.2:2", "ipv6:[::1]:50051",
    ],
)  # fmt: skip
def test_an_address_that_can_be_called(address: str) -> None:
    check_address(address)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("localhost", ": it has no port, as in localhost:50051"),
        ("http://localhost:50051", ": leave out what stands before the host"),
        ("grpc://localhost:50051", ": leave out what stands before the host"),
        ("local host:50051", ": there is a blank in it"),
        ("localhost:50051\n", ": there is a blank in it"),
        ("localhost:http", ": the port is no number"),
        ("localhost:", ": the port is no number"),
        ("localhost:70000", ": port must be 0 to 65535, came 70000"),
        ("localhost:-1", ": port must be 0 to 65535, came -1"),
        (":50051", ": there is no host before the port"),
        ("::1:50051", ": an IPv6 address stands in brackets"),
        ("localhost/x:50051", ""),
        ("ipv4:127.0.0.1", ": it has no port"),
        ("unix:", ": the path is missing"),
        ("", ""),
        ("  ", ""),
        (50051, ""),
        (None, ""),
        (b"localhost:50051", ""),
    ],
)
def test_an_address_that_cannot(address: object, why: str) -> None:
    expected = re.escape(f"expected host:port or unix:/path, came {address!r}{why}")
    for attempt in (check_address, Client, lambda address: AddressBook(["localhost:1", address])):
        with pytest.raises(ValueError, match=expected):
            attempt(address)  # type: ignore[operator]


def test_a_host_and_a_port_are_no_address() -> None:
    with pytest.raises(ValueError, match="expected host:port or unix:/path, came 'localhost': it has no port"):
        Client(("localhost", 50051))  # type: ignore[arg-type]
