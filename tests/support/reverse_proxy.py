"""The reverse proxies of ops/, run as they are written, but for addresses, ports and where they may write."""

import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc

from splitlearn_comm.testing import eventually
from tests.support.programs import ROOT
from tests.support.serve_processes import quiet_port

OPS = ROOT / "ops"
WRITTEN_ADDRESS = "127.0.0.1:50050"
WRITTEN_SERVERS = ("127.0.0.1:50051", "127.0.0.1:50052")


def readdressed(text: str, address: str, servers: Sequence[str]) -> str:
    """A configuration with other addresses."""
    places = dict(zip((WRITTEN_ADDRESS, *WRITTEN_SERVERS), (address, *servers), strict=True))
    assert all(f"{place}" in text for place in places)
    return re.sub("|".join(map(re.escape, places)), lambda found: places[found[0]], text)


def nginx_command(address: str, servers: Sequence[str], directory: Path) -> list[str]:
    """Write a configuration of nginx; return what runs it."""
    text = readdressed((OPS / "nginx.conf").read_text(), address, servers)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    writable = "".join(f"{kind}_temp_path {directory / kind};\n" for kind in kinds)
    text = text.replace("/run/nginx.pid", str(directory / "nginx.pid")).replace("http {\n", f"http {{\n{writable}", 1)
    (directory / "nginx.conf").write_text(text)
    return ["nginx", "-p", str(directory), "-c", "nginx.conf", "-e", "stderr", "-g", "daemon off;"]


def haproxy_command(address: str, servers: Sequence[str], directory: Path) -> list[str]:
    """Write a configuration of HAProxy; return what runs it."""
    (directory / "haproxy.cfg").write_text(readdressed((OPS / "haproxy.cfg").read_text(), address, servers))
    return ["haproxy", "-db", "-f", str(directory / "haproxy.cfg")]


COMMANDS = {"nginx": nginx_command, "haproxy": haproxy_command}


@contextmanager
def reverse_proxy(name: str, servers: Sequence[str], directory: Path) -> Iterator[str]:
    """Run a proxy before two servers until the block ends; yields its address."""
    address = f"127.0.0.1:{quiet_port()}"
    said = directory / f"{name}.txt"
    with said.open("w") as output:
        process = subprocess.Popen(COMMANDS[name](address, servers, directory), stdout=output, stderr=output)
    try:
        with grpc.insecure_channel(address) as channel:
            is_ready = grpc.channel_ready_future(channel)

            def is_listening() -> bool:
                assert process.poll() is None, said.read_text()
                return is_ready.done()

            eventually(is_listening, timeout_s=60)
        yield address
    finally:
        process.terminate()
        process.wait(20)
