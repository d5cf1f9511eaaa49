"""Admission by what the caches hold: pure."""

import asyncio

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splitlearn_comm import CacheUse, Crop, Forward, GRPCComputeServer, Reorder, ResourceExhaustedError, StartRecording
from splitlearn_comm.client import ExponentialBackoff
from splitlearn_comm.quickstart import Client
from splitlearn_core.testing import random_hidden, reference, tiny_trunk
from splitlearn_manager.runtime.cache_book import CacheBook, CacheLimits
from splitlearn_manager.runtime.hosted_trunk import HostedTrunk, bytes_per_token


def tokens(rows: int, length: int) -> Forward:
    return Forward(torch.zeros(rows, length, 1))


@pytest.mark.parametrize(
    ("limits", "limit_bytes"),
    [
        (CacheLimits(), 0),
        (CacheLimits(max_bytes=100), 100),
        (CacheLimits(max_tokens=7), 70),
        (CacheLimits(max_bytes=100, max_tokens=7), 70),
    ],
)
def test_it_says_what_is_used_of_what_there_is_in_bytes(limits: CacheLimits, limit_bytes: int) -> None:
    book = CacheBook(limits, bytes_per_token=10)
    book.open("a")
    book.admit("a", tokens(2, 3))
    assert book.use() == CacheUse(num_bytes=60, limit_bytes=limit_bytes)


def test_steps_count_what_they_add_and_take_away() -> None:
    book = CacheBook(CacheLimits(), bytes_per_token=10)
    book.open("a")
    for action, expected in (
        (tokens(2, 3), 6),
        (tokens(2, 1), 8),
        (Crop(2), 4),
        (Reorder((0, 0, 1)), 6),
        (StartRecording(), 6),
        (Crop(99), 0),
    ):
        book.admit("a", action)
        assert (book.num_tokens, book.num_bytes) == (expected, 10 * expected)
    assert repr(book) == "<1 sessions, 0 tokens, 0 bytes>"


@pytest.mark.parametrize(
    ("limits", "unit"), [(CacheLimits(max_tokens=5), "tokens"), (CacheLimits(max_bytes=59), "bytes")]
)
def test_what_does_not_fit_is_refused_with_the_numbers_and_counts_nothing(limits: CacheLimits, unit: str) -> None:
    book = CacheBook(limits, bytes_per_token=10)
    for name in ("a", "b"):
        book.open(name)
    book.admit("a", tokens(1, 4))
    with pytest.raises(ResourceExhaustedError, match=f"2 sessions would hold .* {unit}.* at most") as caught:
        book.admit("b", tokens(1, 2))
    assert caught.value.retry_after_s
    assert book.num_tokens == 4
    book.admit("b", tokens(1, 1))
    book.close("a")
    book.admit("b", tokens(1, 4))
    assert book.num_tokens == 5


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(0, 5))))
def test_the_sum_is_that_of_the_sessions(sizes: list[tuple[int, int, int]]) -> None:
    book, held = CacheBook(CacheLimits(max_tokens=20), bytes_per_token=1), dict[int, int]()
    for name, rows, length in sizes:
        if str(name) not in book:
            book.open(str(name))
        before = held.get(name, 0)
        try:
            book.resize(str(name), rows, length)
            held[name] = rows * length
        except ResourceExhaustedError:
            assert sum(held.values()) - before + rows * length > 20
        assert book.num_tokens == sum(held.values()) <= 20
    for name, _, _ in sizes:
        book.close(str(name))
    assert (book.num_tokens, len(book)) == (0, 0)


def test_a_token_takes_what_its_keys_and_values_take() -> None:
    trunk = tiny_trunk()  # four layers in the trunk, 32 wide, float32
    config = trunk.config
    heads, head_dim = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    assert bytes_per_token(trunk) == 4 * 2 * heads * head_dim * 4


def test_a_server_whose_caches_are_full_says_so_at_once_and_goes_on() -> None:
    trunk, hidden_BTH = tiny_trunk(), random_hidden(1, 6)
    expected_BTH = reference(trunk, hidden_BTH)
    host = HostedTrunk(trunk, name="tiny", cache_limits=CacheLimits(max_tokens=8))
    impatient = ExponentialBackoff(max_attempts=1)
    with GRPCComputeServer(host, port=0) as server, Client(server.address, retry=impatient) as client:
        first, second = client.session(), client.session()
        assert torch.equal(first.step(hidden_BTH), expected_BTH)
        with pytest.raises(ResourceExhaustedError, match=r"9 tokens.* at most 8"):
            second.step(hidden_BTH[:, :3])
        second.step(hidden_BTH[:, :2])
        first.close()
        rest = second.step(hidden_BTH[:, 2:])
        torch.testing.assert_close(rest, expected_BTH[:, 2:], rtol=0, atol=1e-5)


def test_a_host_that_is_torn_down_holds_nothing() -> None:
    async def run() -> None:
        host = HostedTrunk(tiny_trunk(), name="tiny")
        await host.open_session("a")
        await host.run_step("a", Forward(random_hidden(1, 3)))
        await host.teardown()
        await host.open_session("a")
        assert await host.run_step("a", Forward(random_hidden(1, 3))) is not None
        await host.teardown()

    asyncio.run(run())
