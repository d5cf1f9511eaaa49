import pytest
import torch

from splitlearn_comm import KVEntries, KVEntry, UnsupportedOperationError
from splitlearn_comm.codec import ROLES
from splitlearn_comm.framing import steps
from splitlearn_comm.framing.agreement import check_codecs, codecs_of, encode_codecs
from splitlearn_comm.framing.inbox import Inbox
from splitlearn_comm.messages import RAW_ROLES, Codecs, RoleCodecs, SessionState

ROLE_CODECS = RoleCodecs(hidden=Codecs("int8", "bf16"), gradient=Codecs("bf16"), kv=Codecs("zstd", "fp16"))


@pytest.mark.parametrize("codecs", [ROLE_CODECS, RAW_ROLES, RoleCodecs(kv=Codecs(to_client="bf16"))])
def test_an_open_names_the_codecs_of_each_role(codecs: RoleCodecs) -> None:
    request = Inbox(1 << 20).request(steps.encode_open(steps.Open("s", codecs=codecs)))
    assert request is not None
    assert request.action == steps.Open("s", codecs=codecs)


def test_raw_takes_no_bytes() -> None:
    assert encode_codecs(Codecs()) is None
    message = encode_codecs(Codecs(to_client="bf16"))
    assert message is not None
    assert codecs_of(message) == Codecs(to_client="bf16")


def test_there_is_a_codec_for_each_role_and_int8_is_not_for_caches() -> None:
    assert [role for role, _ in ROLE_CODECS.by_role()] == list(ROLES)
    for role, codecs in ROLE_CODECS.by_role():
        check_codecs(role, codecs)
    with pytest.raises(UnsupportedOperationError, match="'int8' is not for kv: expected one of raw, bf16, fp16, zstd"):
        check_codecs("kv", Codecs(to_client="int8"))


def test_a_state_goes_through_the_codec_for_caches_and_no_other() -> None:
    inputs = torch.randn(1, 2, 4)
    state = SessionState(KVEntries((KVEntry(0, "inputs", {"inputs": inputs}),), 2), 1)
    data = steps.encode_import(1, state, "bf16")
    inbox = Inbox(1 << 20)
    inbox.agree(RoleCodecs(hidden=Codecs("bf16"), kv=Codecs("zstd")))
    with pytest.raises(UnsupportedOperationError, match="'bf16'"):
        inbox.request(data)
    inbox.agree(RoleCodecs(kv=Codecs("bf16")))
    request = inbox.request(data)
    assert request is not None
    assert isinstance(request.action, steps.Import)
    assert torch.equal(request.action.state.cache.entries[0].tensors["inputs"], inputs.bfloat16().float())
