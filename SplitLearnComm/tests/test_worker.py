"""The worker thread: order, errors, cancellation, shutdown."""

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Callable

import pytest

from splitlearn_comm.worker import WorkerThread


def on_worker(test: Callable[[WorkerThread], Awaitable[None]]) -> None:
    async def main() -> None:
        worker = WorkerThread("worker-under-test")
        try:
            await test(worker)
        finally:
            await worker.shutdown()

    asyncio.run(main())


def test_calls_run_in_order_on_one_thread_that_is_not_the_loops() -> None:
    async def test(worker: WorkerThread) -> None:
        order: list[int] = []
        threads = await asyncio.gather(
            *(worker.run(lambda n=n: (order.append(n), threading.current_thread())[1]) for n in range(20))
        )
        assert order == list(range(20))
        assert {thread.name for thread in threads} == {"worker-under-test"}

    on_worker(test)


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (ValueError("no"), "^no$"),
        (KeyboardInterrupt(), r"raised KeyboardInterrupt\(\)"),
        (SystemExit(3), r"raised SystemExit\(3\)"),
        (asyncio.CancelledError(), r"raised CancelledError\(\)"),
        (StopIteration(), r"raised StopIteration\(\)"),
    ],
)
def test_an_error_reaches_the_waiter_as_an_ordinary_one_and_the_thread_goes_on(
    error: BaseException, match: str
) -> None:
    def fail() -> None:
        raise error

    async def test(worker: WorkerThread) -> None:
        with pytest.raises(ValueError if isinstance(error, ValueError) else RuntimeError, match=match):
            await worker.run(fail)
        assert await worker.run(lambda: 7) == 7

    on_worker(test)


def test_a_call_cancelled_before_its_turn_never_runs() -> None:
    async def test(worker: WorkerThread) -> None:
        go = threading.Event()
        ran: list[str] = []
        first = asyncio.ensure_future(worker.run(go.wait))
        second = asyncio.ensure_future(worker.run(lambda: ran.append("second")))
        await asyncio.sleep(0)
        second.cancel()
        go.set()
        assert await first
        await worker.run(lambda: ran.append("third"))
        assert ran == ["third"]

    on_worker(test)


def test_a_waiter_that_is_cancelled_while_its_call_runs_does_not_disturb_the_next() -> None:
    async def test(worker: WorkerThread) -> None:
        running, go = threading.Event(), threading.Event()
        first = asyncio.ensure_future(worker.run(lambda: (running.set(), go.wait())))
        await asyncio.to_thread(running.wait)
        first.cancel()
        go.set()
        assert await worker.run(lambda: 8) == 8

    on_worker(test)


def test_shutdown_waits_for_the_running_call_cancels_the_queued_and_allows_a_new_start() -> None:
    async def test(worker: WorkerThread) -> None:
        running, go, ended = threading.Event(), threading.Event(), threading.Event()
        first = asyncio.ensure_future(worker.run(lambda: (running.set(), go.wait(), ended.set())))
        queued = asyncio.ensure_future(worker.run(lambda: None))
        await asyncio.to_thread(running.wait)
        shutting_down = asyncio.ensure_future(worker.shutdown())
        await asyncio.wait([queued])
        assert queued.cancelled()
        assert not shutting_down.done()
        go.set()
        await shutting_down
        assert ended.is_set()
        await first
        assert "worker-under-test" not in [thread.name for thread in threading.enumerate()]
        assert await worker.run(lambda: 9) == 9

    on_worker(test)


def test_an_idle_thread_keeps_nothing_of_the_last_call_alive() -> None:
    class Large:
        pass

    async def test(worker: WorkerThread) -> None:
        large = Large()
        gone = weakref.ref(large)
        await worker.run(lambda kept=large: kept and None)
        del large
        await worker.run(lambda: None)
        assert gone() is None

    on_worker(test)
