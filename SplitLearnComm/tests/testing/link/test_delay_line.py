import asyncio

from splitlearn_comm.testing.link.delay_line import DelayLine, Piece


def test_pieces_keep_their_order_and_none_comes_early() -> None:
    async def check() -> None:
        clock = asyncio.get_running_loop().time
        line, start_s = DelayLine(1000), clock()
        for data, delay_s in ((b"a", 0.05), (b"b", 0.0), (b"c", 0.06)):
            await line.put(Piece(data, start_s + delay_s))
        for data, delay_s in ((b"a", 0.05), (b"b", 0.05), (b"c", 0.06)):
            assert (await line.get()).data == data
            assert clock() >= start_s + delay_s

    asyncio.run(check())


def test_a_full_line_takes_no_more_until_something_has_come_out() -> None:
    async def check() -> None:
        line = DelayLine(10)
        await line.put(Piece(b"x" * 8, 0.0))
        waiting = asyncio.create_task(line.put(Piece(b"y" * 3, 0.0)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        assert line.held_bytes == 8
        await line.get()
        await waiting
        assert line.held_bytes == 3

    asyncio.run(check())


def test_a_piece_larger_than_the_line_goes_alone() -> None:
    async def check() -> None:
        line = DelayLine(10)
        await line.put(Piece(b"x" * 100, 0.0))
        assert len((await line.get()).data) == 100

    asyncio.run(check())
