"""What a new user sends wrongly, to a real server in another process.

Each mistake is one clear error at the client, under the right gRPC code, and the server goes on serving.
"""

from typing import Any

import grpc
import pytest
import torch

from splitlearn import SplitModelForCausalLM
from splitlearn.quickstart import load_split_model
from splitlearn_comm import (
    GRPCComputeClient,
    InvalidRequestError,
    MessageTooLargeError,
    ResourceExhaustedError,
    SequenceTooLongError,
)
from splitlearn_comm.quickstart import Client
from splitlearn_core import PartInputError, SplitPointError, TrunkMismatchError
from splitlearn_manager import ManagedServer
from tests.support.checkpoints import load_whole
from tests.support.served import Served, assert_refused, assert_says
from tests.support.trunk_process import TrunkProcess

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("serves_on")


H = 32

MAX_POSITIONS = 256

WRONG_TENSORS: dict[str, tuple[torch.Tensor, tuple[str, ...]]] = {
    "hidden size": (torch.zeros(1, 3, H + 1), ("expected [B, T, 32]", "came torch.float32 [1, 3, 33]", "same model")),
    "dtype": (torch.zeros(1, 3, H).bfloat16(), ("expected torch.float32", "came torch.bfloat16", ".to(torch.float32)")),
    "integer": (torch.ones(1, 3, H, dtype=torch.long), ("expected torch.float32", "torch.int64", "not token ids")),
    "token ids": (torch.ones(1, 3, dtype=torch.long), ("expected torch.float32", "torch.int64 [1, 3]", "Bottom")),
    "rank": (torch.zeros(3, H), ("expected [B, T, 32]", "came torch.float32 [3, 32]")),
    "no tokens": (torch.zeros(1, 0, H), ("B and T at least 1", "came torch.float32 [1, 0, 32]")),
    "NaN": (torch.full((1, 3, H), torch.nan), ("NaN or infinity", "came 96 others of 96", "overflow")),
    "infinity": (torch.tensor([torch.inf] + [0.0] * 95).view(1, 3, H), ("NaN or infinity", "came 1 others of 96")),
}


@pytest.mark.parametrize("name", WRONG_TENSORS)
def test_wrong_tensors_are_invalid_arguments(served: Served, name: str) -> None:
    tensor, words = WRONG_TENSORS[name]
    refused = (InvalidRequestError, grpc.StatusCode.INVALID_ARGUMENT)
    assert_refused(*refused, lambda: served.client.compute(tensor), *words)
    with served.client.session() as session:
        assert_refused(*refused, lambda: session.step(tensor), *words)
        assert session.position == 0
        # A step that was refused changes nothing, and the session goes on.
        assert session.step(torch.zeros(1, 3, H)).shape == (1, 3, H)


def test_beside_the_hidden_states(served: Served) -> None:
    refused = (InvalidRequestError, grpc.StatusCode.INVALID_ARGUMENT)
    hidden_BTH, mask = torch.zeros(2, 3, H), torch.ones(2, 5, dtype=torch.long)
    with served.client.session() as session:
        session.step(hidden_BTH)
        wide = "attention_mask: expected integers or bools [B, past + T] = [2, 6]"
        assert_refused(*refused, lambda: session.step(hidden_BTH, attention_mask=mask), wide, "[2, 5]")
        assert_refused(*refused, lambda: session.step(hidden_BTH, position_ids=mask), "[B, T] = [2, 3]", "[2, 5]")
        assert_refused(*refused, lambda: session.step(hidden_BTH[:1]), "expected 2 rows", "came 1")
        assert_refused(*refused, lambda: session.crop(4), "cannot crop 4", "0 to 3")
        assert_refused(*refused, lambda: session.reorder([0, 2]), "[0, 2]", "from 0 to 1")


def test_nonfinite_hidden_states_may_be_allowed(trunks: TrunkProcess, served: Served) -> None:
    with (
        trunks.serving(served.directory, config={"refuse_nonfinite": False}) as address,
        Client(address) as client,
    ):
        assert client.compute(torch.full((1, 2, H), torch.nan)).isnan().all()


@pytest.mark.parametrize("points", [(4, 2), (0, 3), (2, 6), (2, 2), (-1, 3), (1, 2, 3), (2.0, 4), ("1", "3"), 3])
def test_cut_points_out_of_order_or_range(served: Served, points: Any) -> None:
    for load in (
        lambda: SplitModelForCausalLM.from_pretrained(str(served.directory), split_points=points),
        lambda: load_split_model(str(served.directory), points),
        lambda: ManagedServer(str(served.directory), port=0, split_points=points),
    ):
        with pytest.raises(SplitPointError) as caught:
            load()
        assert_says(caught.value, "0 < a < b < 6", f"got {points!r}")


def test_cut_points_that_are_not_the_servers(served: Served) -> None:
    with pytest.raises(TrunkMismatchError) as caught:
        SplitModelForCausalLM.from_pretrained(str(served.directory), trunk=served.address, split_points=(1, 3))
    assert_says(caught.value, "(1, 3)", "(2, 4)", "leave them out")


def test_a_sequence_longer_than_the_models_maximum(served: Served) -> None:
    refused = (SequenceTooLongError, grpc.StatusCode.OUT_OF_RANGE)
    words = ("0 tokens in the cache and 257 new ones make 257", "256 positions", "shorter")
    assert_refused(*refused, lambda: served.client.compute(torch.zeros(1, MAX_POSITIONS + 1, H)), *words)
    with served.client.session() as session:
        session.step(torch.zeros(1, 3, H))
        words = ("3 tokens in the cache and 254 new ones make 257", "256 positions")
        assert_refused(*refused, lambda: session.step(torch.zeros(1, MAX_POSITIONS - 2, H)), *words)
        assert session.step(torch.zeros(1, MAX_POSITIONS - 3, H)).shape[1] == MAX_POSITIONS - 3
    split = SplitModelForCausalLM.from_pretrained(str(served.directory), trunk=served.address)
    prompt = torch.ones(1, MAX_POSITIONS - 2, dtype=torch.long)
    assert split.generate(prompt, max_new_tokens=3).shape[1] == MAX_POSITIONS + 1  # the last token is never fed back
    with pytest.raises(PartInputError) as caught:
        split.generate(prompt, max_new_tokens=4)
    assert_says(caught.value, "at most 256 tokens", "got 257", "shorten the prompt or lower max_new_tokens")
    split.trunk.close()


def test_a_message_over_the_limit_of_either_side(trunks: TrunkProcess, served: Served) -> None:
    too_large, fits = torch.zeros(2, 100, H), torch.zeros(1, 100, H)
    raised = (MessageTooLargeError, ResourceExhaustedError)
    with GRPCComputeClient(served.address, max_message_bytes=20_000) as client:
        with pytest.raises(raised) as caught:
            client.compute(too_large)
        assert_says(caught.value, "bytes and the limit is 20000", "nothing was sent", "max_message_bytes")
        assert client.compute(fits).shape == fits.shape
    with trunks.serving(served.directory, config={"max_message_bytes": 20_000}) as address, Client(address) as client:
        for call in (lambda: client.compute(too_large), lambda: client.session().step(too_large)):
            with pytest.raises(raised) as caught:
                call()
            assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert_says(caught.value, "20000", "max_message_bytes")
        with pytest.raises(raised) as caught:  # it fits on the way there, and with the cache not on the way back
            client.compute(fits, use_cache=True)
        assert_says(caught.value, "the answer has", "at most 20000", "max_message_bytes")
        assert client.compute(fits).shape == fits.shape


def test_something_that_is_no_address(served: Served) -> None:
    with pytest.raises(TypeError) as caught:
        SplitModelForCausalLM.from_pretrained(str(served.directory), trunk=50051)  # type: ignore[arg-type]
    assert_says(caught.value, "'host:port'", "got int")


def test_what_was_refused_left_the_model_as_it_was(served: Served) -> None:
    split = SplitModelForCausalLM.from_pretrained(str(served.directory), trunk=served.address)
    prompt = torch.arange(3, 9).unsqueeze(0)
    expected = load_whole(served.directory).generate(prompt, max_new_tokens=6)
    assert torch.equal(split.generate(prompt, max_new_tokens=6), expected)
    split.trunk.close()
