"""Every bad input, at the client of a real server: what it is called, what is said, and that the server goes on."""

import re

import grpc
import pytest
import torch

from splitlearn_comm import (
    CommError,
    ComputeCall,
    FingerprintMismatchError,
    GRPCComputeServer,
    GRPCServerConfig,
    InvalidRequestError,
    KVEntries,
    KVEntry,
    SequenceTooLongError,
    ServiceInfo,
)
from splitlearn_comm.quickstart import Client
from splitlearn_comm.testing import Identity
from splitlearn_comm.training import BackwardPass, ForwardPass, TrainingAction
from splitlearn_comm.validation import Validator

GOOD = torch.ones(2, 3, 4)
WITH_NAN, WITH_INF = GOOD.clone(), GOOD.clone()
WITH_NAN[0, 1, 2], WITH_INF[1, 2, 3] = float("nan"), float("-inf")
INVALID, OUT_OF_RANGE = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE

BAD = {
    "hidden size": (torch.ones(2, 3, 5), {}, INVALID, "expected [B, T, 4] .* came torch.float32 [2, 3, 5]"),
    "rank": (torch.ones(3, 4), {}, INVALID, "expected [B, T, 4] .* came torch.float32 [3, 4]"),
    "no tokens": (torch.ones(2, 0, 4), {}, INVALID, "at least 1, came torch.float32 [2, 0, 4]"),
    "dtype": (GOOD.double(), {}, INVALID, "expected torch.float32, came torch.float64; convert"),
    "token ids": (torch.ones(2, 3, dtype=torch.int64), {}, INVALID, "integers .* came torch.int64 [2, 3]; send"),
    "NaN": (WITH_NAN, {}, INVALID, "NaN or infinity .* came 1 others of 24"),
    "infinity": (WITH_INF, {}, INVALID, "NaN or infinity .* came 1 others of 24"),
    "mask width": (GOOD, {"attention_mask": torch.ones(2, 4).int()}, INVALID, "[2, 3], came torch.int32 [2, 4]"),
    "mask dtype": (GOOD, {"attention_mask": torch.ones(2, 3)}, INVALID, "integers or bools .* came torch.float32"),
    "positions": (GOOD, {"position_ids": torch.ones(1, 3).long()}, INVALID, "position_ids.* [2, 3], came .* [1, 3]"),
    "length": (torch.ones(1, 65, 4), {}, OUT_OF_RANGE, "0 tokens in the cache and 65 new .* 64 positions"),
}


def pattern(said: str) -> str:
    return ".*".join(re.escape(part) for part in said.split(".*"))


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_and_the_server_goes_on(
    client: Client, case: tuple[torch.Tensor, dict[str, torch.Tensor], grpc.StatusCode, str]
) -> None:
    tensor, arguments, code, said = case
    with client.session() as session:
        for attempt in (client.compute, session.step):
            with pytest.raises(CommError, match=pattern(said)) as caught:
                attempt(tensor, **arguments)
            assert caught.value.code is code
            assert caught.value.request_id
            assert isinstance(caught.value, InvalidRequestError | SequenceTooLongError)
        assert session.position == 0
        assert torch.equal(session.step(GOOD), GOOD.cumsum(1))
    assert torch.equal(client.compute(GOOD), GOOD.cumsum(1))


def test_the_cache_counts_for_length_and_mask(client: Client) -> None:
    long_BTH = torch.ones(1, 60, 4)
    _, cache = client.compute(long_BTH, use_cache=True)
    with pytest.raises(SequenceTooLongError, match="60 tokens in the cache and 5 new ones make 65"):
        client.compute(torch.ones(1, 5, 4), past_key_values=cache)
    with pytest.raises(InvalidRequestError, match=re.escape("[B, past + T] = [1, 61]")):
        client.compute(torch.ones(1, 1, 4), past_key_values=cache, attention_mask=torch.ones(1, 1).long())
    with client.session() as session:
        session.step(long_BTH)
        with pytest.raises(SequenceTooLongError, match="60 tokens in the cache and 5 new ones make 65"):
            session.step(torch.ones(1, 5, 4))
        session.step(torch.ones(1, 4, 4))
        assert session.position == 64


def test_a_cache_the_host_does_not_know_is_its_own_refusal(client: Client) -> None:
    foreign = KVEntries((KVEntry(0, "keys", {"keys": torch.ones(1)}),), 1)
    with pytest.raises(InvalidRequestError, match="not of a running sum"):
        client.compute(torch.ones(1, 1, 4), past_key_values=foreign)


def test_another_fingerprint_is_refused_before_the_first_tensor(client: Client, sum_server: GRPCComputeServer) -> None:
    with pytest.raises(FingerprintMismatchError, match="fingerprint other, 'running sum' here has running-sum"):
        client.session(expected_fingerprint="other")
    with pytest.raises(FingerprintMismatchError) as caught:
        client.compute(GOOD, expected_fingerprint="other")
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
    client.compute(GOOD, expected_fingerprint="running-sum")
    client.session(expected_fingerprint="running-sum").close()
    assert sum_server.statistics().sessions_opened == 1


def test_large_numbers_are_no_infinities(client: Client) -> None:
    large = torch.full((1, 2, 4), 3e38)
    assert client.compute(large)[0, 0, 0] == large[0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
def test_nan_is_found_in_every_dtype(dtype: torch.dtype) -> None:
    tensor = torch.full((1, 4), 100.0)
    with GRPCComputeServer(Identity(), port=0) as server, Client(server.address) as client:
        client.compute(tensor.to(dtype))
        tensor[0, 2] = float("nan")
        with pytest.raises(InvalidRequestError, match="NaN"):
            client.compute(tensor.to(dtype))


def test_nan_passes_where_it_is_wanted() -> None:
    config = GRPCServerConfig(refuse_nonfinite=False)
    with GRPCComputeServer(Identity(), port=0, config=config) as server, Client(server.address) as client:
        assert client.compute(torch.tensor([float("nan")])).isnan().all()


def test_a_session_needs_a_sequence() -> None:
    with GRPCComputeServer(Identity(), port=0) as server, Client(server.address) as client:
        with client.session() as session, pytest.raises(InvalidRequestError, match=r"rank 2 or more.*came rank 1"):
            session.step(torch.ones(3))
        assert client.compute(torch.tensor(2)).item() == 2


def test_words_of_models_are_for_parts_of_models() -> None:
    for split_points, advice in (((1, 3), "hidden states the Bottom makes, not token ids"), (None, "floating numbers")):
        validator = Validator(ServiceInfo(name="it", hidden_size=4, split_points=split_points))
        with pytest.raises(InvalidRequestError, match=f"integers .*; send (the )?{advice}$"):
            validator.check_call(ComputeCall(torch.ones(1, 1, 4).int()))
        with pytest.raises(InvalidRequestError, match=r"wrong rank: .* 3 dimensions, came torch.float32 \[4\] with 1"):
            validator.check_call(ComputeCall(torch.ones(4)))


MIXED = Validator(ServiceInfo(name="trunk", hidden_size=4, dtype=torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_in_mixed_precision_the_dtypes_of_it_are_taken_and_overflows_too(dtype: torch.dtype) -> None:
    MIXED.check_training(ForwardPass(1, WITH_INF.to(dtype), autocast=torch.bfloat16))
    MIXED.check_training(BackwardPass(1, WITH_INF.to(dtype)))


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (ForwardPass(1, GOOD.bfloat16()), "expected torch.float32, came torch.bfloat16; convert"),
        (ForwardPass(1, WITH_INF), "NaN or infinity"),
        (ForwardPass(1, GOOD, autocast=torch.int8), "autocast of torch.float16 or torch.bfloat16.*came torch.int8"),
        (ForwardPass(1, GOOD.double(), autocast=torch.bfloat16), "came torch.float64"),
        (BackwardPass(1, GOOD.double()), "came torch.float64"),
    ],
)
def test_what_is_not_of_it_is_refused(action: TrainingAction, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        MIXED.check_training(action)
