"""The asyncio client does what the synchronous one does."""

import asyncio

import pytest
import torch

from splitlearn_comm import (
    AsyncComputeClient,
    DeadlineExceededError,
    FingerprintMismatchError,
    GRPCComputeServer,
    InvalidRequestError,
    MessageTooLargeError,
    RemoteInternalError,
    ServerUnavailableError,
    SessionNotFoundError,
)
from splitlearn_comm.testing import CuttableProxy, Failing, Gated, ServerProcess

TOKEN = torch.ones(1, 1, 4)
SUMS = "splitlearn_comm.testing:RunningSumHost"


def test_calls_and_sessions(sums: str) -> None:
    hidden = torch.randn(2, 5, 4)

    async def main() -> None:
        async with AsyncComputeClient(sums) as client, client.session("running-sum") as session:
            assert await client.health()
            assert (await client.get_info()).hidden_size == 4
            output, cache = await client.compute(hidden[:, :3], use_cache=True)
            rest = await client.compute(hidden[:, 3:], past_key_values=cache)
            assert torch.equal(torch.cat((output, rest), dim=1), hidden.cumsum(1))
            await session.start_recording()
            await session.step(hidden)
            await session.crop(2)
            assert torch.equal(await session.step(hidden[:, 3:]), hidden.cumsum(1)[:, 3:])
            await session.reorder([1, 0])
            assert session.position == 5
            with pytest.raises(InvalidRequestError):
                await session.step(torch.ones(2, 1, 3))
            assert (await session.step(torch.ones(2, 1, 4))).shape == (2, 1, 4)
        with pytest.raises(SessionNotFoundError, match="closed here"):
            await session.step(TOKEN)
        await session.close()

    asyncio.run(main())


def test_many_sessions_at_once(sums: str) -> None:
    async def generate(client: AsyncComputeClient, seed: int) -> bool:
        hidden = torch.full((1, 10, 4), float(seed))
        async with client.session() as session:
            steps = [await session.step(hidden[:, index : index + 1]) for index in range(10)]
        return torch.equal(torch.cat(steps, dim=1), hidden.cumsum(1))

    async def main() -> None:
        async with AsyncComputeClient(sums) as client:
            assert all(await asyncio.gather(*(generate(client, seed) for seed in range(8))))

    asyncio.run(main())


def test_refusals_and_failures(sums: str) -> None:
    async def main() -> None:
        async with AsyncComputeClient(sums, max_message_bytes=1000) as client:
            with pytest.raises(FingerprintMismatchError):
                await client.session("other").open()
            with pytest.raises(InvalidRequestError):
                await client.compute(torch.ones(3))
            session = client.session()
            for attempt in (client.compute, session.step):
                with pytest.raises(MessageTooLargeError, match="nothing was sent"):
                    await attempt(torch.ones(1, 64, 4))
            await session.close()
        with GRPCComputeServer(Failing(), port=0) as server:
            async with AsyncComputeClient(server.address) as client:
                with pytest.raises(RemoteInternalError) as caught:
                    await client.compute(TOKEN)
                assert caught.value.request_id

    asyncio.run(main())


@pytest.mark.slow
def test_a_server_that_is_killed() -> None:
    async def main() -> None:
        with ServerProcess(SUMS) as process:
            async with AsyncComputeClient(process.address) as client, client.session() as session:
                await session.step(TOKEN)
                process.kill()
                with pytest.raises(ServerUnavailableError, match="lost in the middle"):
                    await session.step(TOKEN)
                with pytest.raises(ServerUnavailableError, match="lost in the middle"):
                    await session.step(TOKEN)
                with pytest.raises(ServerUnavailableError, match="nothing listens"):
                    await client.compute(TOKEN)

    asyncio.run(main())


def test_a_connection_that_is_cut_and_answers_that_are_lost(sums: str) -> None:
    async def main() -> None:
        with CuttableProxy(sums) as proxy:
            async with AsyncComputeClient(proxy.address) as client, client.session() as session:
                assert (await session.step(TOKEN))[0, 0, 0] == 1
                # At once the answer fails to come; a moment later it is the message that cannot be sent.
                for token, pause_s in ((2, 0.0), (3, 0.1), (4, 0.0), (5, 0.1)):
                    proxy.cut()
                    await asyncio.sleep(pause_s)
                    assert (await session.step(TOKEN))[0, 0, 0] == token
                proxy.swallow_answers()
                step = asyncio.create_task(session.step(TOKEN))
                assert not (await asyncio.wait([step], timeout=0.3))[0]
                with pytest.raises(RuntimeError, match="two tasks"):
                    await session.step(TOKEN)
                proxy.cut()
                assert (await step)[0, 0, 0] == 6

    asyncio.run(main())


def test_no_answer_in_time_and_a_step_that_is_cancelled() -> None:
    function = Gated()

    async def main(address: str) -> None:
        async with AsyncComputeClient(address) as client:
            late, cancelled = client.session(), client.session()
            await asyncio.gather(late.open(), cancelled.open())  # has no part in the time that a step is given
            with pytest.raises(DeadlineExceededError, match=r"within 0\.1 s"):
                await late.step(TOKEN, timeout_s=0.1)
            with pytest.raises(DeadlineExceededError, match=r"within 0\.1 s"):
                await client.compute(TOKEN, timeout_s=0.1)
            task = asyncio.create_task(cancelled.step(TOKEN))
            await asyncio.wait([task], timeout=0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            for session, said in ((late, "within 0.1 s"), (cancelled, "interrupted")):
                with pytest.raises(Exception, match=f"is over: .*{said}"):
                    await session.step(TOKEN)
                await session.close()
            function.gate.set()
            async with client.session() as session:
                assert torch.equal(await session.step(TOKEN), TOKEN)

    with GRPCComputeServer(function, port=0) as server:
        asyncio.run(main(server.address))
