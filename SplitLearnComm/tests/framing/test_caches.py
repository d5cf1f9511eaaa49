import asyncio
from contextlib import nullcontext
from functools import partial

import pytest
import torch

from splitlearn_comm import (
    AsyncComputeClient,
    ComputeCall,
    ComputeResult,
    Forward,
    GRPCComputeClient,
    GRPCComputeServer,
    GRPCServerConfig,
    InvalidRequestError,
    KVEntries,
    KVEntry,
    MessageTooLargeError,
    UnsupportedOperationError,
)
from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.codec import CodecPlan, usable_names
from splitlearn_comm.framing import calls, steps
from splitlearn_comm.framing.assembly import Packing
from splitlearn_comm.framing.caches import decode_cache, encode_cache
from splitlearn_comm.framing.chunks import messages_of
from splitlearn_comm.framing.inbox import Inbox
from splitlearn_comm.messages import Codecs, RoleCodecs, SessionState
from splitlearn_comm.protocol import MAX_MESSAGE_BYTES
from splitlearn_comm.testing import RunningSumHost

KEYS = torch.randn(2, 3, 5, 8)
CACHE = KVEntries(
    (
        KVEntry(2, "full", {"keys": KEYS, "values": KEYS + 1}),
        KVEntry(3, "linear", {"counts": torch.arange(4).expand(2, 4)}),
    ),
    5,
)


def travelled(codec: str) -> tuple[KVEntries, int]:
    """The cache as it arrives, and the bytes it took."""
    message = encode_cache(CACHE, codec)
    assert message is not None
    data = message.SerializeToString()
    return decode_cache(pb.KVCache.FromString(data), (codec,)), len(data)


@pytest.mark.parametrize("codec", usable_names("kv"))
def test_a_cache_goes_through_every_codec_for_caches(codec: str) -> None:
    came, num_bytes = travelled(codec)
    assert (came.position, [(entry.layer, entry.kind) for entry in came.entries]) == (5, [(2, "full"), (3, "linear")])
    assert torch.equal(came.entries[1].tensors["counts"], torch.arange(4).expand(2, 4))
    narrow = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(codec, torch.float32)
    assert torch.equal(came.entries[0].tensors["keys"], KEYS.to(narrow).float())
    assert num_bytes < CACHE.num_bytes * (0.6 if narrow is not torch.float32 else 1.1)


def test_those_for_rows_of_hidden_states_are_not_for_caches() -> None:
    assert usable_names("kv") == ("raw", "bf16", "fp16", "zstd")


def test_a_codec_that_was_not_agreed_on_is_refused_and_raw_never() -> None:
    message = encode_cache(CACHE, "bf16")
    assert message is not None
    with pytest.raises(UnsupportedOperationError, match="'bf16': expected one of raw, fp16"):
        decode_cache(message, ("fp16",))
    raw = encode_cache(CACHE)
    assert raw is not None
    assert torch.equal(decode_cache(raw, ("fp16",)).entries[0].tensors["keys"], KEYS)


def test_few_bytes_that_stand_for_many_are_refused_all_together() -> None:
    zeros = {"keys": torch.zeros(1 << 20), "values": torch.zeros(1 << 20)}
    message = encode_cache(KVEntries((KVEntry(0, "full", zeros),), 1), "zstd")
    assert message is not None
    assert message.ByteSize() < 10_000
    assert decode_cache(message, ("zstd",), max_bytes=8 << 20).num_bytes == 8 << 20
    with pytest.raises(MessageTooLargeError, match="would have 8388608 bytes: at most 8388607"):
        decode_cache(message, ("zstd",), max_bytes=(8 << 20) - 1)


def test_a_side_that_takes_more_than_is_usual_makes_a_tensor_of_it() -> None:
    zeros = {"keys": torch.zeros(MAX_MESSAGE_BYTES + 1, dtype=torch.int8)}
    message = encode_cache(KVEntries((KVEntry(0, "full", zeros),), 1), "zstd")
    assert message is not None
    assert decode_cache(message, ("zstd",), max_bytes=MAX_MESSAGE_BYTES + 1).num_bytes == MAX_MESSAGE_BYTES + 1


LIMIT = 1 << 20
GROWING = KVEntries((KVEntry(0, "inputs", {"inputs": torch.zeros(1, LIMIT // 16 + 1, 4)}),), LIMIT // 16 + 1)
"""A little over a MiB, and a few bytes through zstd."""


def test_the_limit_of_who_reads_is_that_of_caches() -> None:
    call = calls.encode_call(ComputeCall(torch.zeros(1, 1, 4), past_key_values=GROWING), kv=Codecs("zstd", "zstd"))
    result = calls.encode_result(ComputeResult(torch.zeros(1, 1, 4), GROWING), "zstd")
    step = steps.encode_import(0, SessionState(GROWING, None), "zstd")
    state = steps.encode_state(0, 0, SessionState(GROWING, None), "zstd")
    for max_bytes in (LIMIT, GROWING.num_bytes):
        inbox = Inbox(max_bytes)
        inbox.agree(RoleCodecs(kv=Codecs("zstd", "zstd")))
        for read in (
            partial(calls.decode_call, call, max_bytes),
            partial(calls.decode_result, result, "zstd", max_bytes),
            partial(inbox.request, step),
            partial(inbox.answer, state),
        ):
            with nullcontext() if max_bytes > LIMIT else pytest.raises(MessageTooLargeError, match=f"at most {LIMIT}"):
                read()


def test_and_that_of_hidden_states_whole_and_in_chunks() -> None:
    hidden_BTH = torch.zeros(1, LIMIT // 16 + 1, 4)
    for chunk_bytes in (0, 16):
        message = steps.encode_step(1, 0, Forward(hidden_BTH), Packing("zstd", chunk_bytes))
        for max_bytes in (LIMIT, hidden_BTH.nbytes):
            inbox = Inbox(max_bytes)
            inbox.agree(RoleCodecs(hidden=Codecs("zstd", "zstd")))
            with nullcontext() if max_bytes > LIMIT else pytest.raises(MessageTooLargeError, match=f"at most {LIMIT}"):
                for piece in messages_of(message):
                    inbox.request(piece)


def test_servers_and_clients_read_with_the_limit_that_they_were_given() -> None:
    codec, token = CodecPlan(kv="zstd"), torch.zeros(1, 1, 4)
    host = RunningSumHost(max_positions=LIMIT)
    with (
        GRPCComputeServer(host, port=0, config=GRPCServerConfig(max_message_bytes=LIMIT)) as server,
        GRPCComputeClient(server.address, codec=codec) as client,
        pytest.raises(MessageTooLargeError, match=f"at most {LIMIT} are taken"),
    ):
        client.compute(token, past_key_values=GROWING)

    async def asynchronous(address: str) -> None:
        async with AsyncComputeClient(address, codec=codec, max_message_bytes=LIMIT) as client:
            await client.compute(token, past_key_values=GROWING, use_cache=True)

    with GRPCComputeServer(host, port=0) as server:
        with GRPCComputeClient(server.address, codec=codec, max_message_bytes=LIMIT) as client:
            assert client.compute(token, past_key_values=GROWING).shape == token.shape
            with pytest.raises(MessageTooLargeError, match=f"at most {LIMIT} are taken"):
                client.compute(token, past_key_values=GROWING, use_cache=True)
        with pytest.raises(MessageTooLargeError, match=f"at most {LIMIT} are taken"):
            asyncio.run(asynchronous(server.address))


def test_a_shape_that_lies_is_still_an_invalid_request() -> None:
    tensor = pb.TensorData(shape=[1 << 40], dtype=pb.DTYPE_FLOAT32, data=b"1234")
    entry = pb.KVCacheEntry(tensors=[pb.NamedTensor(name="keys", tensor=tensor)])
    with pytest.raises(InvalidRequestError, match="wrong length"):
        decode_cache(pb.KVCache(entries=[entry]))


def test_a_call_says_how_caches_are_coded_there_and_back() -> None:
    call = ComputeCall(torch.zeros(2, 1, 4), past_key_values=CACHE, use_cache=True)
    came, _, kv = calls.decode_call(calls.encode_call(call, "f", Codecs("bf16", "zstd")))
    assert kv == Codecs("bf16", "zstd")
    assert came.past_key_values is not None
    assert torch.equal(came.past_key_values.entries[0].tensors["keys"], KEYS.bfloat16().float())
    reply = calls.encode_result(ComputeResult(torch.zeros(2, 1, 4), CACHE), kv.to_client)
    result = calls.decode_result(reply, "zstd")
    assert result.past_key_values is not None
    assert torch.equal(result.past_key_values.entries[0].tensors["keys"], KEYS)


@pytest.mark.parametrize(
    ("kv", "said"), [(Codecs("int8"), "not for kv"), (Codecs(to_client="int3"), "no codec 'int3'")]
)
def test_a_call_with_a_codec_that_is_not_for_caches_is_refused(kv: Codecs, said: str) -> None:
    data = calls.encode_call(ComputeCall(torch.zeros(2, 1, 4)), "", kv)
    with pytest.raises(UnsupportedOperationError, match=said):
        calls.decode_call(data)
