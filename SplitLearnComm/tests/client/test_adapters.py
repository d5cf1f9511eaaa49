"""The name of an adapter reaches the host, with whose it is; what a client does differently with one."""

import asyncio

import pytest
import torch

from splitlearn_comm import (
    AdapterNotFoundError,
    AddressBook,
    AsyncComputeClient,
    ClientSettings,
    ClientStatistics,
    ComputeCall,
    ComputeResult,
    GRPCComputeServer,
    GRPCServerConfig,
    NamedHosts,
)
from splitlearn_comm.client.course import Exchange, SessionCourse
from splitlearn_comm.client.cursor import SessionCursor
from splitlearn_comm.client.deadline import Deadline
from splitlearn_comm.client.failures import worth_another_round
from splitlearn_comm.framing.inbox import Inbox
from splitlearn_comm.framing.steps import Open
from splitlearn_comm.quickstart import Client
from splitlearn_comm.testing import RunningSumHost

TOKEN = "a" * 32
HIDDEN_BTH = torch.ones(1, 2, 4)


class Told(RunningSumHost):
    """Takes any adapter, and keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, str]] = []

    async def compute(self, call: ComputeCall) -> ComputeResult:
        self.told.append((call.client, call.adapter))
        return ComputeResult(call.tensor)

    async def open_session(self, session_id: str, client: str = "", adapter: str = "") -> None:
        self.told.append((client, adapter))
        await super().open_session(session_id, client)


def test_both_clients_say_it_and_the_server_says_whose_it_is() -> None:
    host = Told()
    with GRPCComputeServer(host, port=0, config=GRPCServerConfig(tokens={"alice": TOKEN})) as server:
        with Client(server.address, token=TOKEN) as client:
            client.compute(HIDDEN_BTH, adapter="one")
            client.compute(HIDDEN_BTH)
            client.session(adapter="two").close()
            client.session().close()

        async def ask() -> None:
            async with AsyncComputeClient(server.address, token=TOKEN) as client:
                await client.compute(HIDDEN_BTH, adapter="three")
                async with client.session(adapter="four"):
                    pass

        asyncio.run(ask())
    assert host.told == [("alice", adapter) for adapter in ("one", "", "two", "", "three", "four")]


def test_it_is_asked_for_at_each_server_and_each_says_that_it_is_not_there() -> None:
    with (
        GRPCComputeServer(RunningSumHost(), port=0) as first,
        GRPCComputeServer(Told(), port=0) as second,
        Client(AddressBook([first.address, second.address], in_order=True)) as client,
    ):
        assert torch.equal(client.compute(HIDDEN_BTH, adapter="there"), HIDDEN_BTH)
        client.session(adapter="there").close()
    with (
        GRPCComputeServer(RunningSumHost(), port=0) as first,
        GRPCComputeServer(NamedHosts({"sum": RunningSumHost()}), port=0) as second,
        Client([first.address, second.address]) as client,
    ):
        for ask in (lambda: client.compute(HIDDEN_BTH, adapter="nowhere"), lambda: client.session(adapter="nowhere")):
            with pytest.raises(AdapterNotFoundError) as refused:
                ask()
            assert all(f"at {address}" in str(refused.value) for address in (first.address, second.address))


def test_what_is_no_adapter_anywhere_is_not_told_as_a_model_that_is_missing() -> None:
    failures = [(address, AdapterNotFoundError("no adapter")) for address in ("a:1", "b:2")]
    assert type(worth_another_round(list(failures))) is AdapterNotFoundError


def opening(adapter: str | None) -> Open:
    """What a session says first."""
    addresses = ("a:1", "b:2")
    cursor = SessionCursor(ClientSettings(addresses=addresses), None, adapter)
    course = SessionCourse(cursor, AddressBook(addresses, in_order=True), ClientStatistics()).open(Deadline.after(9))
    effect = next(course)
    while not isinstance(effect, Exchange):
        effect = course.send(None)
    assert isinstance(effect.message, bytes)
    request = Inbox(1).request(effect.message)
    assert request is not None
    assert isinstance(request.action, Open)
    return request.action


def test_a_session_with_an_adapter_does_not_offer_to_move() -> None:
    assert (opening("mine").adapter, opening("mine").can_move) == ("mine", False)
    assert (opening(None).adapter, opening(None).can_move) == ("", True)
