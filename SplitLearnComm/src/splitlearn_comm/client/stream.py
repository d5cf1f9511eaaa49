"""One synchronous stream: a message out, its answer in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import grpc

from splitlearn_comm.client.awaited import Awaited, is_stale
from splitlearn_comm.client.closing import closed_here
from splitlearn_comm.client.deadline import Deadline
from splitlearn_comm.client.failures import calls_away, gone, translate
from splitlearn_comm.client.statistics import ClientStatistics
from splitlearn_comm.client.watch import DeadlineWatch
from splitlearn_comm.framing.chunks import Outgoing, messages_of
from splitlearn_comm.framing.inbox import Inbox
from splitlearn_comm.framing.steps import Answer, with_timeout


class SyncStream:
    """A Session call. gRPC reads the messages to send from a queue, on a thread of its own.

    Args:
        method: The call, taking and giving bytes.
        address: Where it goes, for messages.
        inbox: Reads what comes.
        watch: Ends waits that are overdue.
        statistics: Where to count.
    """

    def __init__(
        self,
        method: grpc.StreamStreamMultiCallable[Any, Any],
        address: str,
        inbox: Inbox,
        watch: DeadlineWatch,
        statistics: ClientStatistics,
    ) -> None:
        self.due_at_s = math.inf
        self._address = address
        self._watch = watch
        self._statistics = statistics
        self._was_given_up = self._was_closed = False
        self._outbox: SimpleQueue[Outgoing | None] = SimpleQueue()
        self._inbox = inbox
        self._call: Any = method(_messages_in(self._outbox))
        watch.add(self)

    def exchange(
        self, message: Outgoing, deadline: Deadline, step_id: int = 0, awaited: Awaited = Awaited.STEP
    ) -> Answer:
        """Send a message and wait for its answer.

        Args:
            message: With the tensor in it, or in chunks ahead of it.
            deadline: When the answer has to be there.
            step_id: Number of the step it is, or of the last before it; answers to earlier ones, which a repeated
                message may cause, are passed over.
            awaited: What answers it; all else is passed over too.

        Raises:
            DeadlineExceededError: It did not come in time; the stream is of no more use.
            ServerUnavailableError: The stream broke.
            ClientClosedError: It was closed meanwhile, or the client.
            InvalidRequestError: What came is no answer.
            CommError: The stream ended for another reason.
        """
        remaining_s = deadline.remaining_s()
        if deadline.is_told and awaited is Awaited.STEP:
            message = with_timeout(message, remaining_s)
        self._watch.begin(self, deadline.at_s)
        self._statistics.count_sent(len(message))
        self._outbox.put(message)
        try:
            while True:
                data: bytes = next(self._call)
                self._statistics.bytes_received += len(data)
                answer = self._inbox.answer(data)
                if answer is not None and not is_stale(answer, step_id, awaited):
                    return answer
        except StopIteration:
            raise gone(self._address, "it ended the stream") from None
        except grpc.RpcError as error:
            if self._was_given_up:
                raise deadline.exceeded() from error
            if self._was_closed or self._watch.is_closed:
                raise closed_here() from error
            raise translate(error, self._address, deadline.timeout_s) from error
        finally:
            self.due_at_s = math.inf

    def when_called_away(self, notify: Callable[[SyncStream], None]) -> None:
        """Have it called, on a thread of gRPC's, when the server ends the stream because it stops."""
        self._call.add_done_callback(lambda call: notify(self) if calls_away(call.trailing_metadata()) else None)

    def give_up(self) -> None:
        """End a wait that is overdue."""
        self._was_given_up = True
        self._call.cancel()

    def close(self) -> None:
        """End the stream, whatever it is doing."""
        self._was_closed = True
        self._watch.remove(self)
        self._outbox.put(None)
        self._call.cancel()


def _messages_in(outbox: SimpleQueue[Outgoing | None]) -> Iterator[bytes]:
    """What gRPC is to send, on its own thread: chunks are copied there while the ones before them travel."""
    while (message := outbox.get()) is not None:
        yield from messages_of(message)
