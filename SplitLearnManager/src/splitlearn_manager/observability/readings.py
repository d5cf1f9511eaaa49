"""Asking the hosts of models what they did."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from splitlearn_comm import ServerUnavailableError, SessionHost
from splitlearn_manager.observability.bridge import LoopBridge
from splitlearn_manager.observability.engine_metrics import ModelKey
from splitlearn_manager.runtime.figures import EngineReading
from splitlearn_manager.runtime.measured_host import MeasuredHost

logger = logging.getLogger(__name__)

READ_TIMEOUT_S = 2.0
"""How long a model may take to tell what it did: it does so between two forwards."""

Hosts = Callable[[], Mapping[ModelKey, SessionHost]]
"""What is served now. Called on the event loop."""


class Readings:
    """What each model did up to now. One that does not answer in time is left out.

    Args:
        hosts: tells what is served.
        bridge: to the event loop where the hosts live.
        timeout_s: how long a model may take.
    """

    def __init__(self, hosts: Hosts, bridge: LoopBridge, timeout_s: float = READ_TIMEOUT_S) -> None:
        self._hosts = hosts
        self._bridge = bridge
        self._timeout_s = timeout_s

    def __call__(self) -> Mapping[ModelKey, EngineReading]:
        """Ask all, and wait for the answers; from any thread but that of the event loop."""
        return self._bridge.ask(self._ask_all, {})

    async def _ask_all(self) -> dict[ModelKey, EngineReading]:
        hosts = {key: host for key, host in self._hosts().items() if isinstance(host, MeasuredHost)}
        readings = await asyncio.gather(*(self._ask(key, host) for key, host in hosts.items()))
        return {key: reading for key, reading in zip(hosts, readings, strict=True) if reading is not None}

    async def _ask(self, key: ModelKey, host: MeasuredHost) -> EngineReading | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await host.read()
        except TimeoutError:
            logger.warning("%s did not tell its figures within %g s", key.name, self._timeout_s)
        except ServerUnavailableError:
            pass  # its process has just ended; whoever keeps the models says so
        return None
