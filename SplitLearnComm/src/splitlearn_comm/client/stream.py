"""One synchronous stream: a message out, its answer in."""

from __future__ import annotations

import math
from queue import SimpleQueue
from typing import Any

import grpc

from splitlearn_comm.client.deadline import Deadline
from splitlearn_comm.client.failures import gone, translate
from splitlearn_comm.client.statistics import ClientStatistics
from splitlearn_comm.client.watch import DeadlineWatch


class SyncStream:
    """A Session call. gRPC reads the messages to send from a queue, on a thread of its own.

    Args:
        method: The call, taking and giving bytes.
        address: Where it goes, for messages.
        watch: Ends waits that are overdue.
        statistics: Where to count.
    """

    def __init__(
        self,
        method: grpc.StreamStreamMultiCallable[Any, Any],
        address: str,
        watch: DeadlineWatch,
        statistics: ClientStatistics,
    ) -> None:
        self.due_at_s = math.inf
        self._address = address
        self._watch = watch
        self._statistics = statistics
        self._was_given_up = False
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        self._call: Any = method(iter(self._outbox.get, None))
        watch.add(self)

    def exchange(self, message: bytes, deadline: Deadline) -> bytes:
        """Send a message and wait for its answer.

        Raises:
            DeadlineExceededError: It did not come in time; the stream is of no more use.
            ServerUnavailableError: The stream broke.
            CommError: The stream ended for another reason.
        """
        deadline.remaining_s()
        self._watch.begin(self, deadline.at_s)
        self._outbox.put(message)
        try:
            answer: bytes = next(self._call)
        except StopIteration:
            raise gone(self._address, "it ended the stream") from None
        except grpc.RpcError as error:
            if self._was_given_up:
                raise deadline.exceeded() from error
            raise translate(error, self._address, deadline.timeout_s) from error
        finally:
            self.due_at_s = math.inf
        self._statistics.count(message, answer)
        return answer

    def give_up(self) -> None:
        """End a wait that is overdue."""
        self._was_given_up = True
        self._call.cancel()

    def close(self) -> None:
        """End the stream, whatever it is doing."""
        self._watch.remove(self)
        self._outbox.put(None)
        self._call.cancel()
