import pytest

from splitlearn_comm.addresses import is_loopback, joined, stays_here, unix_path


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
