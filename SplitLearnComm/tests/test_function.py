import threading

import pytest
import torch

from splitlearn_comm import (
    ComputeFunction,
    GRPCComputeServer,
    KVEntries,
    ModelComputeFunction,
    RemoteInternalError,
    ServiceInfo,
    UnsupportedOperationError,
)
from splitlearn_comm.quickstart import Client
from splitlearn_comm.testing import Failing


class Noting(ComputeFunction):
    """Notes the thread of each call."""

    def __init__(self, inline: bool) -> None:
        self.inline = inline
        self.threads: list[str] = []

    def setup(self) -> None:
        self.threads.append(threading.current_thread().name)

    teardown = setup

    def compute(self, tensor: torch.Tensor) -> torch.Tensor:
        self.setup()
        return tensor


@pytest.mark.parametrize(("inline", "name"), [(True, "splitlearn-server"), (False, "splitlearn-function")])
def test_a_function_has_one_thread_or_runs_where_the_message_arrives(inline: bool, name: str) -> None:
    function = Noting(inline)
    with GRPCComputeServer(function, port=0) as server, Client(server.address) as client:
        client.compute(torch.ones(1))
        client.session().step(torch.ones(1, 1))
    assert len(function.threads) == 4
    assert len(set(function.threads)) == 1
    assert function.threads[0].startswith(name)


class Everything(ComputeFunction):
    """Takes all a function may take."""

    def compute(
        self,
        tensor: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: KVEntries | None = None,
        use_cache: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, KVEntries]:
        assert attention_mask is not None
        assert position_ids is not None
        past = past_key_values.position if past_key_values else 0
        output = tensor * attention_mask[:, -tensor.shape[1] :] + position_ids
        return (output, KVEntries((), past + tensor.shape[1])) if use_cache else output

    def get_info(self) -> dict[str, object]:
        return {"extra": {"colour": "blue"}, "max_positions": 9}


def test_a_function_gets_what_it_names() -> None:
    with GRPCComputeServer(Everything(), port=0) as server, Client(server.address) as client:
        assert client.get_info().name == "Everything"
        assert client.get_info().extra == {"colour": "blue"}
        mask, positions = torch.tensor([[True, False]]), torch.tensor([[5, 6]])
        output, cache = client.compute(torch.ones(1, 2), attention_mask=mask, position_ids=positions, use_cache=True)
        assert output.tolist() == [[6, 6]]
        assert cache == KVEntries((), 2)
        output, cache = client.compute(
            torch.ones(1, 1),
            attention_mask=torch.ones(1, 3).int(),
            position_ids=positions[:, :1],
            past_key_values=cache,
            use_cache=True,
        )
        assert cache.position == 3


def test_a_function_is_not_given_what_it_does_not_name() -> None:
    with GRPCComputeServer(Noting(inline=True), port=0) as server, Client(server.address) as client:
        tensor = torch.ones(1, 2, 3)
        with pytest.raises(UnsupportedOperationError, match="'Noting' takes no attention_mask, position_ids"):
            client.compute(tensor, attention_mask=torch.ones(1, 2).int(), position_ids=torch.ones(1, 2).int())
        with pytest.raises(UnsupportedOperationError, match="takes no attention_mask;"):
            client.compute(tensor, attention_mask=torch.ones(7))  # wrong in itself too, which is beside the point
        with pytest.raises(UnsupportedOperationError, match="takes no use_cache"):
            client.compute(tensor, use_cache=True)
        with client.session() as session:
            with pytest.raises(UnsupportedOperationError, match="takes no attention_mask"):
                session.step(tensor, attention_mask=torch.ones(1, 2).int())
            session.step(tensor)


def test_an_unknown_failure_says_one_sentence_and_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with GRPCComputeServer(Failing(), port=0) as server, Client(server.address) as client:
        with client.session() as session:
            for attempt in (client.compute, session.step, session.step):
                with pytest.raises(RemoteInternalError, match="the server failed; its log") as caught:
                    attempt(torch.ones(1, 1))
                assert Failing.secret not in str(caught.value)
                record = next(r for r in caplog.records if str(caught.value.request_id) in r.getMessage())
                assert "Traceback" in record.getMessage()
                assert Failing.secret in record.getMessage()
            assert session.position == 0
        assert client.health()


class WrongInfo(Noting):
    def get_info(self) -> dict[str, object]:
        return {"hiden_size": 3}


class Pair(ComputeFunction):
    def __init__(self, inline: bool) -> None:
        self.inline = inline

    def compute(self, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return tensor, tensor


@pytest.mark.parametrize("inline", [False, True])
def test_a_pair_is_no_tensor(inline: bool, caplog: pytest.LogCaptureFixture) -> None:
    with (
        GRPCComputeServer(Pair(inline), port=0) as server,
        Client(server.address) as client,
        client.session() as session,
    ):
        for attempt in (client.compute, session.step):
            with pytest.raises(RemoteInternalError):
                attempt(torch.ones(1, 1))
            assert "compute() returned tuple, expected a torch.Tensor" in caplog.text
            caplog.clear()


class WrongResult(ComputeFunction):
    def compute(self, tensor: torch.Tensor) -> torch.Tensor:
        return [1.0]  # type: ignore[return-value]


def test_mistakes_of_the_author_are_told_to_the_author(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TypeError, match="hiden_size"):
        GRPCComputeServer(WrongInfo(inline=True), port=0).start(block=False)
    with (
        GRPCComputeServer(WrongResult(), port=0) as server,
        Client(server.address) as client,
        pytest.raises(RemoteInternalError),
    ):
        client.compute(torch.ones(1))
    assert "returned list, expected a torch.Tensor" in caplog.text


class Scaled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor | None = None) -> tuple[torch.Tensor, str]:
        shift = 0 if position_ids is None else position_ids.unsqueeze(-1)
        return x * self.scale + shift + (100 if self.training else 0), "more"


def test_a_module_is_a_function() -> None:
    info = ServiceInfo(name="scaled", hidden_size=2)
    function = ModelComputeFunction(Scaled(), info=info)
    assert not function.compute(torch.ones(1, 1, 2)).requires_grad
    with GRPCComputeServer(function, port=0) as server, Client(server.address) as client:
        assert client.compute(torch.ones(1, 1, 2)).tolist() == [[[3, 3]]]
        assert client.compute(torch.ones(1, 1, 2), position_ids=torch.tensor([[4]])).tolist() == [[[7, 7]]]
        with pytest.raises(UnsupportedOperationError, match="'scaled' takes no attention_mask"):
            client.compute(torch.ones(1, 1, 2), attention_mask=torch.ones(1, 1).int())
        assert client.get_info().hidden_size == 2


def test_a_module_that_gives_no_tensor_is_named() -> None:
    class Wordy(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> list[str]:
            return ["no tensor"]

    with pytest.raises(TypeError, match="Wordy returned str"):
        ModelComputeFunction(Wordy()).compute(torch.ones(1))


def test_a_server_of_a_function_may_be_started_again() -> None:
    server = GRPCComputeServer(ModelComputeFunction(torch.nn.Identity()), port=0)
    for _ in range(2):
        with server, Client(server.address) as client:
            assert torch.equal(client.compute(torch.ones(2)), torch.ones(2))
