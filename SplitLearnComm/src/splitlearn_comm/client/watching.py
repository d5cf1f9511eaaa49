"""Tells an observer of what a client does: its calls, and the steps of its sessions."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Self

import grpc

from splitlearn_comm.errors import CommError
from splitlearn_comm.framing.steps import Answer
from splitlearn_comm.messages import Action, Timings
from splitlearn_comm.observer import CallSummary, Metadata, Observer, StepSummary, action_name
from splitlearn_comm.protocol import SESSION
from splitlearn_comm.training import TrainingAction


class WatchedCall:
    """One unary call, for as long as the `with` block lasts, in which it is made.

    Args:
        observer: Is told; None for nobody.
        method: The call's.
        bytes_sent: Of its message.
    """

    def __init__(self, observer: Observer | None, method: str, bytes_sent: int) -> None:
        self._observed = None if observer is None else observer.on_call(method, ())
        self._began_s = time.perf_counter()
        self._bytes_sent = bytes_sent
        self.bytes_received = 0
        """Of the answer; to be set when it is there."""

    def metadata(self) -> Metadata:
        """What the observer wants to send along."""
        return self._observed.metadata() if self._observed else ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._observed is not None:
            self._observed.on_end(
                CallSummary(
                    code=code_of(error),
                    seconds=time.perf_counter() - self._began_s,
                    bytes_received=self.bytes_received,
                    bytes_sent=self._bytes_sent,
                )
            )


class WatchedSession:
    """One session, over however many connections and servers.

    Args:
        observer: Is told.
    """

    def __init__(self, observer: Observer) -> None:
        self._observed = observer.on_call(SESSION, ())
        self._began_s = self._step_began_s = time.perf_counter()
        self._action: Action | TrainingAction | None = None
        self._is_over = False

    def metadata(self) -> Metadata:
        """What the observer wants to send along with each stream."""
        return self._observed.metadata()

    def begin_step(self, action: Action | TrainingAction, began_s: float) -> None:
        """A step is about to be sent, whose encoding began then."""
        self._action, self._step_began_s = action, began_s

    def end_step(self, answer: Answer, step_id: int, bytes_sent: int) -> None:
        """It was answered."""
        code = grpc.StatusCode.OK if answer.error is None else answer.error.code
        self._tell(code, step_id, answer.timings, answer.num_bytes, bytes_sent)

    def end(self, reason: CommError | None, step_id: int) -> None:
        """The session can do nothing more, and neither can the step that may have been under way. The first time
        counts."""
        if self._is_over:
            return
        self._is_over = True
        code = code_of(reason)
        if self._action is not None:
            self._tell(code, step_id, None, 0, 0)
        self._observed.on_end(CallSummary(code=code, seconds=time.perf_counter() - self._began_s))

    def _tell(
        self, code: grpc.StatusCode, step_id: int, timings: Timings | None, bytes_received: int, bytes_sent: int
    ) -> None:
        action, self._action = self._action, None
        self._observed.on_step(
            StepSummary(
                action=action_name(action),
                code=code,
                step_id=step_id,
                seconds=time.perf_counter() - self._step_began_s,
                compute_s=timings.compute_s if timings else 0.0,
                bytes_received=bytes_received,
                bytes_sent=bytes_sent,
                queue_s=timings.queue_s if timings else 0.0,
            )
        )


def code_of(error: BaseException | None) -> grpc.StatusCode:
    """The status of what ended like this."""
    if error is None:
        return grpc.StatusCode.OK
    if isinstance(error, CommError):
        return error.code
    is_cancelled = isinstance(error, asyncio.CancelledError | KeyboardInterrupt)
    return grpc.StatusCode.CANCELLED if is_cancelled else grpc.StatusCode.UNKNOWN
