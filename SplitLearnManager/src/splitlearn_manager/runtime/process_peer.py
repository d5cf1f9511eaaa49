"""The side of a model's process that answers: any `SessionHost`, asked over a channel."""

import asyncio
import json
import logging
import math
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from splitlearn_comm import CommError, SessionHost
from splitlearn_comm.contained import awaited
from splitlearn_comm.framing.calls import decode_call, encode_result
from splitlearn_comm.framing.chunks import whole
from splitlearn_comm.framing.inbox import Inbox
from splitlearn_comm.framing.steps import (
    Import,
    Request,
    encode_done,
    encode_refusal,
    encode_state,
    encode_trained,
)
from splitlearn_comm.messages import Action, Crop, Forward, Reorder, SessionState, StartRecording
from splitlearn_comm.server.due import in_time
from splitlearn_comm.server.faults import told_without_contents
from splitlearn_comm.training import Trained, TrainingAction
from splitlearn_comm.worker import TURN, Turn
from splitlearn_manager.runtime.engine_driver import ASKED_S
from splitlearn_manager.runtime.measured_host import MeasuredHost
from splitlearn_manager.runtime.process_channel import Channel
from splitlearn_manager.runtime.process_frames import Frame, Kind, unnamed
from splitlearn_manager.runtime.process_tensors import due_of, packed, unpacked

logger = logging.getLogger(__name__)

_DONE = (Kind.DONE, whole(encode_done(0, 0)))
_ANY_SIZE = sys.maxsize
_ACTIONS = (Forward, Reorder, Crop, StartRecording)


class HostPeer:
    """Does on a host what frames ask for, and answers each.

    Args:
        host: what computes; set up already.
    """

    def __init__(self, host: SessionHost) -> None:
        self._host = host
        self._channel = Channel(self._take, self._end)
        self._inboxes: dict[int, Inbox] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self._doing: dict[Kind, Callable[[Frame], Awaitable[tuple[Kind, bytes]]]] = {
            Kind.OPEN: self._open,
            Kind.STEP: self._step,
            Kind.FORWARD: self._forward,
            Kind.COMPUTE: self._compute,
            Kind.ADAPTED: self._compute_adapted,
            Kind.EXPORT: self._export,
            Kind.IMPORT: self._import,
            Kind.CLOSE: self._close,
            Kind.READ: self._read,
        }

    @property
    def channel(self) -> Channel:
        """The protocol to put on a transport."""
        return self._channel

    async def wait_ended(self) -> None:
        """Wait until the other end asks for it, or is gone, and what was running has been answered."""
        await self._ended.wait()
        if self._running:
            await asyncio.wait(self._running)

    def _end(self) -> None:
        self._ended.set()

    def _take(self, frame: Frame) -> None:
        if frame.kind is Kind.END:
            self._end()
            return
        task = asyncio.create_task(self._answer(frame))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _answer(self, frame: Frame) -> None:
        turn = Turn()
        ASKED_S.set(frame.sent_s), TURN.set(turn)  # of the frame's own task
        try:
            kind, payload = await awaited(self._doing[frame.kind], frame)
        except CommError as error:
            kind, payload = Kind.REFUSED, encode_refusal(0, 0, error)
        except Exception as error:
            told = told_without_contents(error)
            logger.error("failed at %s\n%s", frame.kind.name, told)
            kind, payload = Kind.FAILED, told.encode()
        self._channel.send(kind, payload, call=frame.call, began_s=turn.began_s)

    async def _open(self, frame: Frame) -> tuple[Kind, bytes]:
        client, adapter = json.loads(frame.payload)
        await self._host.open_session(str(frame.session), client, adapter)
        self._inboxes[frame.session] = Inbox(0, _ANY_SIZE)
        return _DONE

    async def _forward(self, frame: Frame) -> tuple[Kind, bytes]:
        return await self._run(frame, Forward(unpacked(frame.payload)), due_of(frame.payload))

    async def _step(self, frame: Frame) -> tuple[Kind, bytes]:
        request = self._inbox(frame).request(frame.payload)
        assert request is not None
        if isinstance(request.action, TrainingAction):
            return await self._train(frame, request.action)
        assert isinstance(request.action, _ACTIONS)
        return await self._run(frame, request.action, _due_of(request, frame.sent_s))

    async def _train(self, frame: Frame, action: TrainingAction) -> tuple[Kind, bytes]:
        result = await self._host.train(str(frame.session), action)
        answer = encode_trained(0, 0, result) if isinstance(result, Trained) else encode_done(0, 0, result)
        return Kind.DONE, whole(answer)

    async def _run(self, frame: Frame, action: Action, due_s: float) -> tuple[Kind, bytes]:
        step = self._host.run_step(str(frame.session), action)
        output = await (step if due_s == math.inf else in_time(step, due_s))
        payload = None if output is None else packed(output)
        return (Kind.DONE, whole(encode_done(0, 0, output))) if payload is None else (Kind.OUTPUT, payload)

    async def _compute(self, frame: Frame) -> tuple[Kind, bytes]:
        call, _, _ = decode_call(frame.payload, _ANY_SIZE)
        return Kind.DONE, encode_result(await self._host.compute(call))

    async def _compute_adapted(self, frame: Frame) -> tuple[Kind, bytes]:
        client, payload = unnamed(frame.payload)
        call, _, _ = decode_call(payload, _ANY_SIZE)
        return Kind.DONE, encode_result(await self._host.compute(replace(call, client=client)))

    async def _export(self, frame: Frame) -> tuple[Kind, bytes]:
        cache = await self._host.export_session(str(frame.session))
        return Kind.DONE, encode_state(0, 0, SessionState(cache, None))

    async def _import(self, frame: Frame) -> tuple[Kind, bytes]:
        request = self._inbox(frame).request(frame.payload)
        assert request is not None
        assert isinstance(request.action, Import)
        await self._host.import_session(str(frame.session), request.action.state.cache)
        return _DONE

    async def _close(self, frame: Frame) -> tuple[Kind, bytes]:
        self._inboxes.pop(frame.session, None)
        await self._host.close_session(str(frame.session))
        return _DONE

    async def _read(self, frame: Frame) -> tuple[Kind, bytes]:
        reading = await self._host.read() if isinstance(self._host, MeasuredHost) else None
        return Kind.READING, b"" if reading is None else reading.to_json().encode()

    def _inbox(self, frame: Frame) -> Inbox:
        # Of a session that is closed already the host says so itself.
        return self._inboxes.get(frame.session) or Inbox(0)


def _due_of(request: Request, sent_s: float) -> float:
    """Return until when somebody waits for a step, on `time.monotonic`; infinity where that is not told."""
    if not request.timeout_ms:
        return math.inf
    return time.monotonic() + request.timeout_ms / 1000 - (time.perf_counter() - sent_s)
