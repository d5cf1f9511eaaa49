"""What runs in a model's process: `python -m splitlearn_manager.runtime.model_process_main DESCRIPTOR`.

It loads what the first message says, then serves it until the other end asks it to stop or is gone.
"""

import asyncio
import gc
import json
import logging
import signal
import socket
import sys
from collections.abc import Callable
from types import TracebackType

import torch

from splitlearn_comm import SessionHost
from splitlearn_comm.framing.service import encode_info
from splitlearn_comm.server.faults import told_without_contents
from splitlearn_core import CoreError
from splitlearn_manager.errors import ManagerError
from splitlearn_manager.runtime.load_hosted import load_hosted_trunk
from splitlearn_manager.runtime.load_reporter import LoadReporter
from splitlearn_manager.runtime.model_spec import ModelSpec
from splitlearn_manager.runtime.process_frames import Kind
from splitlearn_manager.runtime.process_link import BlockingLink, end_with, leave
from splitlearn_manager.runtime.process_peer import HostPeer

logger = logging.getLogger(__name__)

Loader = Callable[[ModelSpec, LoadReporter], SessionHost]
"""Makes what is to be served. Runs before there is an event loop, and may take as long as it likes."""


def run(load: Loader) -> None:
    """Be a model's process.

    Args:
        load: makes what is to be served.
    """
    connection = socket.socket(fileno=int(sys.argv[1]))
    # Signals to the whole group are for the serving process, which ends this one when its sessions are done.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end_with(connection)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    sys.excepthook = _tell
    link = BlockingLink(connection)
    try:
        host = _load(load, link)
    except ConnectionError:
        # Whoever notices first: the thread that watches may not be through when this one ends the process.
        leave()
    if host is None:
        sys.exit(1)
    asyncio.run(_serve(host, link, connection))


def _load(load: Loader, link: BlockingLink) -> SessionHost | None:
    spec = ModelSpec.from_json(link.receive(Kind.LOAD).payload.decode())
    if spec.num_threads is not None:
        torch.set_num_threads(spec.num_threads)
    try:
        return load(spec, LoadReporter(link))
    except Exception as error:
        failure = {"kind": type(error).__name__, "message": _said_of(error, spec)}
    link.send(Kind.LOAD_FAILED, json.dumps(failure).encode())
    return None


def _said_of(error: Exception, spec: ModelSpec) -> str:
    """Log why a model cannot be loaded; return what its user is told."""
    if isinstance(error, CoreError | ManagerError | ValueError | OSError | MemoryError):
        logger.error("%s cannot be loaded: %s: %s", spec.label, type(error).__name__, error)
        return str(error) or type(error).__name__
    logger.error("loading %s failed\n%s", spec.label, told_without_contents(error))
    return f"it failed with a {type(error).__name__} that nobody expected; the log has the reason"


async def _serve(host: SessionHost, link: BlockingLink, connection: socket.socket) -> None:
    await host.setup()
    # What is here now stays: without it the collector walks a million objects of the libraries between two steps.
    gc.collect()
    gc.freeze()
    link.send(Kind.READY, encode_info(host.get_info()))
    connection.setblocking(False)
    peer = HostPeer(host)
    await asyncio.get_running_loop().create_unix_connection(lambda: peer.channel, sock=connection)
    await peer.wait_ended()
    await host.teardown()
    peer.channel.close()


def _tell(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    print(told_without_contents(error) if isinstance(error, Exception) else repr(error), file=sys.stderr)


if __name__ == "__main__":
    run(load_hosted_trunk)
