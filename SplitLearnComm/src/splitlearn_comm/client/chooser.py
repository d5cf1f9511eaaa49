"""`codec="auto"`: asks a server and the link to it, and chooses; once for each server.

Pure: a generator that says what to ask and what to measure, as the course of a session does, for the synchronous and
the asyncio client to follow.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

import splitlearn_comm.protocol as protocol
from splitlearn_comm.client.course import Pause
from splitlearn_comm.client.probe import Echo, measure_bandwidth
from splitlearn_comm.codec import AutoCodec, CodecChoice, CodecCost, choose_codec
from splitlearn_comm.errors import ResourceExhaustedError
from splitlearn_comm.framing import service
from splitlearn_comm.messages import ServiceInfo

logger = logging.getLogger("splitlearn_comm.client")


@dataclass(frozen=True, slots=True)
class Question:
    """A unary call to make to the server."""

    path: str
    message: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back, and after how many seconds."""

    message: bytes
    seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """Something to compute on this machine that takes a while: nothing else may have to wait for it."""

    call: Callable[[], Any]


Asking = Generator[Question | Pause | Work, Any, CodecChoice]
"""What a client does; it sends back the `Reply` to a question and the result of work, or throws in the `CommError` with
which it failed. A pause for which there is no time is left out: what is known by then has to do."""


class CodecChooser:
    """What was chosen for each server of a client.

    Args:
        auto: How to choose.
        max_bytes: Largest message sent; the tensor that codecs are measured on is no larger.
    """

    def __init__(self, auto: AutoCodec, max_bytes: int) -> None:
        self._auto = auto
        self._max_bytes = max_bytes
        self._choices: dict[str, CodecChoice] = {}
        self._costs: dict[tuple[str, ...], list[CodecCost]] = {}

    def choices(self) -> dict[str, CodecChoice]:
        """What was chosen up to now, by address."""
        return dict(self._choices)

    def choosing(self, address: str) -> Asking:
        """Choose for a server, unless that is done: yields what to ask it, is sent what came back.

        Raises:
            CommError: The server cannot be asked, or says of its tensors what cannot be.
            ValueError: The server does not say what tensors it takes, and there is no sample of them.
        """
        if (known := self._choices.get(address)) is not None:
            return known
        answer: Reply = yield Question(protocol.GET_SERVICE_INFO, b"")
        costs = yield Work(partial(self._costs_for, service.decode_info(answer.message)))
        bandwidth = yield from _asking_bandwidth()
        auto = self._auto
        # Work too: what a lossy codec loses may be measured when its turn comes.
        choose = partial(choose_codec, costs, bandwidth_bytes_per_s=bandwidth, max_kl=auto.max_kl, kl=auto.kl)
        choice: CodecChoice = yield Work(choose)
        self._choices[address] = choice
        logger.info("codec for %s: %s", address, choice)
        return choice

    def _costs_for(self, info: ServiceInfo) -> list[CodecCost]:
        # Of this machine, and the same for all servers that have the same codecs.
        if (costs := self._costs.get(info.codecs)) is None:
            sample = self._auto.sample_for(info.hidden_size, info.dtype, self._max_bytes)
            costs = self._costs[info.codecs] = self._auto.costs(sample, info.codecs)
        return costs


def _asking_bandwidth() -> Generator[Question | Pause | Work, Any, float]:
    probe = measure_bandwidth()
    try:
        size = next(probe)
        while True:
            # Random: whatever compresses on the way would make zeros look fast.
            question = service.encode_health_question(os.urandom(size))
            try:
                reply: Reply = yield Question(protocol.HEALTH_CHECK, question)
            except ResourceExhaustedError as error:
                # This client may not send so fast; what comes next would be refused as well.
                yield Pause(error.retry_after_s or 0.0)
                size = probe.send(None)
            else:
                back = len(service.decode_health_padding(reply.message))
                size = probe.send(Echo(reply.seconds, size + back))
    except StopIteration as end:
        bandwidth: float = end.value
        return bandwidth
