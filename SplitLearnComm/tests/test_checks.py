"""What people hand over by mistake is refused at once, with what to hand over instead."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from splitlearn_comm import (
    AsyncComputeClient,
    ComputeFunction,
    GRPCComputeClient,
    GRPCComputeServer,
    GRPCServerConfig,
    ModelComputeFunction,
    register_codec,
)
from splitlearn_comm.client import Timeouts
from splitlearn_comm.testing import Identity, RunningSumHost

NOWHERE: Any = "localhost:1"


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (np.ones(3), r"expected a torch.Tensor, came numpy.ndarray: use torch.from_numpy"),
        ([1.0, 2.0], r"expected a torch.Tensor, came list: use torch.tensor"),
        (1.5, r"came float: use torch.tensor"),
        (None, r"expected a torch.Tensor, came NoneType"),
        ({"input_ids": torch.ones(1)}, r"came dict: send one tensor of it a call"),
    ],
)
def test_what_is_no_tensor_is_not_sent(sums: str, value: Any, match: str) -> None:
    async def asynchronously() -> None:
        async with AsyncComputeClient(sums) as client, client.session() as session:
            for attempt in (client.compute, session.step):
                with pytest.raises(TypeError, match=match):
                    await attempt(value)
            assert (await session.step(torch.ones(1, 1, 4))).shape == (1, 1, 4)

    with GRPCComputeClient(sums) as client, client.session() as session:
        for attempt in (client.compute, session.step):
            with pytest.raises(TypeError, match=match):
                attempt(value)
            if value is not None:
                with pytest.raises(TypeError, match=f"attention_mask: .*{match[-12:]}"):
                    attempt(torch.ones(1, 1, 4), attention_mask=value)
        assert session.step(torch.ones(1, 1, 4)).shape == (1, 1, 4)
    asyncio.run(asynchronously())


class Other:
    pass


def double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * 2


@pytest.mark.parametrize(
    ("service", "match"),
    [
        (Identity, r"came the class Identity: make one, Identity\(\)"),
        (Other, r"came the class Other: derive it from ComputeFunction"),
        (double, r"came the function double: derive a class from ComputeFunction whose compute\(\) calls it"),
        (lambda tensor: tensor, r"came the function <lambda>: derive a class from ComputeFunction"),
        (torch.nn.Linear(2, 2), r"came the torch module Linear: wrap it, ModelComputeFunction\(module\)"),
        (None, r"came NoneType: derive a class from ComputeFunction"),
    ],
)
def test_what_cannot_be_served(service: Any, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        GRPCComputeServer(service, port=0)


@pytest.mark.parametrize(
    ("attempt", "error", "match"),
    [
        (lambda: ModelComputeFunction(double), TypeError, "expected a torch.nn.Module, came function: derive from"),  # type: ignore[arg-type]
        (lambda: ModelComputeFunction(torch.nn.Linear), TypeError, r"came the class Linear: make one"),  # type: ignore[arg-type]
        (lambda: GRPCServerConfig(tokens="tokens"), TypeError, r"came str: for a file, TokenFile\(path\)"),  # type: ignore[arg-type]
        (lambda: GRPCServerConfig(tokens=["secret"]), TypeError, r"names to tokens, came list$"),  # type: ignore[arg-type]
        (lambda: GRPCServerConfig(tls=True), TypeError, r"tls: expected ServerTLS\(certificate=..., key=...\)"),  # type: ignore[arg-type]
        (lambda: GRPCServerConfig(max_sessions="5"), TypeError, r"max_sessions must be a number .* came '5'"),  # type: ignore[arg-type]
        (lambda: register_codec("int8"), TypeError, r"expected one derived from CompressedTensorCodec.*'int8'"),  # type: ignore[arg-type]
        (lambda: GRPCComputeClient(NOWHERE, codec=5), TypeError, "codec: expected the name of a codec.* came 5"),  # type: ignore[arg-type]
        (lambda: GRPCComputeClient(NOWHERE, timeout_s="5"), TypeError, "timeout_s must be a number .* came '5'"),  # type: ignore[arg-type]
        (lambda: GRPCComputeClient(NOWHERE, timeout_s=-1), ValueError, "timeout_s must be greater than zero, came -1"),
        (lambda: GRPCComputeClient(NOWHERE, timeouts=3), TypeError, r"timeouts: expected Timeouts\(...\), came 3"),  # type: ignore[arg-type]
        (lambda: GRPCComputeClient(NOWHERE, retry=3), TypeError, "retry: expected a RetryStrategy.* came 3"),  # type: ignore[arg-type]
        (lambda: GRPCComputeClient(NOWHERE, tls="ca.pem"), TypeError, r"tls: expected True, or ClientTLS\(ca=...\)"),  # type: ignore[arg-type]
        (lambda: Timeouts(step_s="1"), TypeError, "timeouts.step_s must be a number"),  # type: ignore[arg-type]
        (
            lambda: GRPCComputeClient(NOWHERE).compute(torch.ones(1), timeout_s="5"),  # type: ignore[call-overload]
            TypeError,
            "timeout_s must be a number of seconds, came '5'",
        ),
    ],
)
def test_an_argument_of_another_kind(attempt: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        attempt()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"timeout": 3}, r"no option 'timeout': did you mean timeout_s\? There are codec, connect_timeout_s, "),
        ({"tokn": "x"}, r"did you mean token\?"),
        ({"replay": 3}, r"did you mean replay_bytes\?"),
        ({"colour": "red"}, r"no option 'colour': There are codec,"),
    ],
)
def test_an_option_that_there_is_not(options: dict[str, Any], match: str) -> None:
    async def asynchronously() -> None:
        AsyncComputeClient(NOWHERE, **options)

    with pytest.raises(TypeError, match=match):
        GRPCComputeClient(NOWHERE, **options)
    with pytest.raises(TypeError, match=match):
        asyncio.run(asynchronously())


def test_a_session_is_told_that_codecs_are_the_clients() -> None:
    client = GRPCComputeClient(NOWHERE)
    with pytest.raises(
        TypeError, match=r"codec is an option of the client, for all its sessions: Client\(address, cod"
    ):
        client.session(codec="int8")
    with pytest.raises(TypeError, match="session\\(\\) takes expected_fingerprint and adapter, came colour"):
        client.session(colour="red")


def test_an_asyncio_client_is_made_and_used_on_one_loop() -> None:
    with pytest.raises(RuntimeError, match="no event loop runs here: make an AsyncComputeClient inside async def, on"):
        AsyncComputeClient(NOWHERE)

    async def make(address: str) -> AsyncComputeClient:
        return AsyncComputeClient(address)

    async def use(client: AsyncComputeClient) -> None:
        session = client.session()
        for attempt in (lambda: client.compute(torch.ones(1)), client.health, client.get_info, session.open):
            with pytest.raises(RuntimeError, match="belongs to another event loop: make an AsyncComputeClient inside"):
                await attempt()

    with GRPCComputeServer(RunningSumHost(), port=0) as server:
        made_on = asyncio.new_event_loop()
        client = made_on.run_until_complete(make(server.address))
        asyncio.run(use(client))
        made_on.run_until_complete(client.close())
        made_on.close()


@pytest.mark.parametrize(
    ("host", "port", "match"),
    [
        ("127.0.0.1", 70000, "port must be 0 to 65535, came 70000"),
        ("127.0.0.1", -1, "port must be 0 to 65535, came -1"),
        (
            "127.0.0.1:50051",
            0,
            "the port is in the host, came host='127.0.0.1:50051': say host='127.0.0.1', port=50051",
        ),
        ("my host", 0, "host: expected a name, an IP address or unix:/path, came 'my host'"),
        ("[::1]", 0, "an IPv6 address without brackets"),
    ],
)
def test_a_place_where_no_server_can_listen(host: str, port: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        GRPCComputeServer(Identity(), host=host, port=port)


def test_a_port_is_a_number() -> None:
    with pytest.raises(TypeError, match="port must be a whole number from 0 to 65535, came '50051'"):
        GRPCComputeServer(Identity(), port="50051")  # type: ignore[arg-type]


def test_an_address_is_told_once_there_is_one() -> None:
    class Double(ComputeFunction):
        def compute(self, tensor: torch.Tensor) -> torch.Tensor:
            return tensor * 2

    server = GRPCComputeServer(Double(), port=0)
    with pytest.raises(RuntimeError, match=r"with port=0 the address is known once .* call start\(\) first"):
        _ = server.address
    assert repr(server) == "<GRPCComputeServer of Double at any free port of 127.0.0.1, not serving>"
    with server:
        assert repr(server) == f"<GRPCComputeServer of Double at {server.address}, serving>"
    assert GRPCComputeServer(Double(), port=5).address == "127.0.0.1:5"
