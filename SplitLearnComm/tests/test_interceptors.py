"""Interceptors of others, at the server and at both kinds of client, on calls and on streams."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
import torch

from splitlearn_comm import (
    AsyncComputeClient,
    AuthenticationError,
    GRPCComputeClient,
    GRPCComputeServer,
    GRPCServerConfig,
    PermissionDeniedError,
)
from splitlearn_comm.protocol import COMPUTE, SESSION
from splitlearn_comm.testing import CuttableProxy, RunningSumHost

HIDDEN = torch.ones(1, 3, 4)


class Noting(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Notes each call's method and one of the keys its client sent."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        self.seen.append((details.method, dict(details.invocation_metadata).get("x-mine")))
        return await continuation(details)


class Fastidious(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Serves only those who say please."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        if dict(details.invocation_metadata).get("x-mine") == "please":
            return await continuation(details)

        async def refuse(_: object, context: Any) -> None:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "say please")

        return grpc.unary_unary_rpc_method_handler(refuse)


def with_mine(details: Any, value: str) -> Any:
    metadata = [*(details.metadata or ()), ("x-mine", value)]
    if isinstance(details, grpc.aio.ClientCallDetails):
        return grpc.aio.ClientCallDetails(
            details.method, details.timeout, grpc.aio.Metadata(*metadata), details.credentials, details.wait_for_ready
        )
    return details._replace(metadata=metadata)


class Saying(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):  # type: ignore[type-arg]
    """Sends a word with each call of a synchronous client."""

    def __init__(self, word: str) -> None:
        self._word = word

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(with_mine(details, self._word), request)

    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return continuation(with_mine(details, self._word), requests)


class SayingOnCalls(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, word: str) -> None:
        self._word = word

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(with_mine(details, self._word), request)


class SayingOnStreams(grpc.aio.StreamStreamClientInterceptor):
    def __init__(self, word: str) -> None:
        self._word = word

    async def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return await continuation(with_mine(details, self._word), requests)


def test_an_interceptor_of_the_server_sees_calls_and_streams() -> None:
    noting = Noting()
    with (
        GRPCComputeServer(RunningSumHost(), port=0, interceptors=[noting]) as server,
        GRPCComputeClient(server.address) as client,
    ):
        client.compute(HIDDEN)
        with client.session() as session:
            session.step(HIDDEN)
    assert [method for method, _ in noting.seen] == [COMPUTE, SESSION]


def test_an_interceptor_of_the_server_may_refuse_one_call_and_let_the_next_in() -> None:
    with GRPCComputeServer(RunningSumHost(), port=0, interceptors=[Fastidious()]) as server:
        for _ in range(2):
            with GRPCComputeClient(server.address) as client, pytest.raises(PermissionDeniedError, match="say please"):
                client.compute(HIDDEN)
            with GRPCComputeClient(server.address, interceptors=[Saying("please")]) as client:
                assert torch.equal(client.compute(HIDDEN), HIDDEN.cumsum(1))


def test_those_who_are_not_let_in_do_not_reach_it() -> None:
    config = GRPCServerConfig(tokens={"alice": "alices-own-long-token"})
    ran: list[object] = []

    class Wrapping(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            handler = await continuation(details)

            async def serve(request: Any, context: Any) -> Any:
                ran.append(request)
                return await handler.unary_unary(request, context)

            return grpc.unary_unary_rpc_method_handler(serve)

    with (
        GRPCComputeServer(RunningSumHost(), port=0, config=config, interceptors=[Wrapping()]) as server,
    ):
        with GRPCComputeClient(server.address) as client, pytest.raises(AuthenticationError):
            client.compute(HIDDEN)
        assert ran == []
        with GRPCComputeClient(server.address, token="alices-own-long-token") as client:
            client.compute(HIDDEN)
        assert len(ran) == 1


def test_interceptors_of_a_synchronous_client() -> None:
    noting = Noting()
    with (
        GRPCComputeServer(RunningSumHost(), port=0, interceptors=[noting]) as server,
        CuttableProxy(server.address) as proxy,
        GRPCComputeClient(proxy.address, interceptors=[Saying("hello")]) as client,
    ):
        client.compute(HIDDEN)
        with client.session() as session:
            session.step(HIDDEN)
            proxy.cut()
            assert torch.equal(session.step(HIDDEN)[0, :, 0], torch.tensor([4.0, 5, 6]))
        assert client.statistics().retries > 0
    assert noting.seen == [(COMPUTE, "hello"), (SESSION, "hello"), (SESSION, "hello")]


def test_interceptors_of_an_asyncio_client() -> None:
    noting = Noting()

    async def act(proxy: CuttableProxy) -> None:
        interceptors = [SayingOnCalls("hello"), SayingOnStreams("hello")]
        async with AsyncComputeClient(proxy.address, interceptors=interceptors) as client:
            await client.compute(HIDDEN)
            async with client.session() as session:
                await session.step(HIDDEN)
                proxy.cut()
                assert torch.equal((await session.step(HIDDEN))[0, :, 0], torch.tensor([4.0, 5, 6]))
            assert client.statistics().retries > 0

    with (
        GRPCComputeServer(RunningSumHost(), port=0, interceptors=[noting]) as server,
        CuttableProxy(server.address) as proxy,
    ):
        asyncio.run(act(proxy))
    assert noting.seen == [(COMPUTE, "hello"), (SESSION, "hello"), (SESSION, "hello")]


def test_what_is_no_interceptor_is_refused_when_the_client_is_made() -> None:
    with pytest.raises(TypeError, match="interceptor must be"):
        GRPCComputeClient("localhost:1", interceptors=[object()])
