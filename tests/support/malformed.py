"""Messages that make no sense, of every kind a hostile or broken client may send; the same for the same seed."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from splitlearn_comm import Action, ComputeCall, Crop, Forward, KVEntries, KVEntry, Reorder, StartRecording
from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.framing import calls, steps
from splitlearn_comm.framing.assembly import Packing
from splitlearn_comm.framing.chunks import ChunkedMessage
from splitlearn_comm.messages import Codecs, RoleCodecs, SessionState

Draw = random.Random


@dataclass(frozen=True)
class Malformed:
    """What is sent to spoil something."""

    kind: str
    """What is wrong with it."""
    call: bytes = b""
    """To be sent to Compute; empty for a session."""
    session: tuple[bytes, ...] = field(default=())
    """To be sent over a session's stream, one after the other."""
    may_pass: bool = False
    """Whether it may by chance be something that makes sense."""


def malformed(seed: int, count: int) -> Iterator[Malformed]:
    """So many of them, of all kinds in turn."""
    draw = Draw(seed)
    for number in range(count):
        yield KINDS[number % len(KINDS)](draw)


def call_and_step(tensor: pb.TensorData) -> tuple[bytes, bytes]:
    """A tensor as a call and as a step."""
    return (
        pb.ComputeRequest(tensor=tensor).SerializeToString(),
        pb.SessionRequest(step_id=1, forward=pb.Forward(tensor=tensor)).SerializeToString(),
    )


def either(draw: Draw, kind: str, tensor: pb.TensorData) -> Malformed:
    """A bad tensor, in a call or in a step."""
    call, step = call_and_step(tensor)
    return Malformed(kind, call=call) if draw.random() < 0.5 else Malformed(kind, session=(step,))


def random_bytes(draw: Draw) -> Malformed:
    data = draw.randbytes(draw.randrange(1, 400))
    if draw.random() < 0.5:
        return Malformed("random bytes", call=data)
    return Malformed("random bytes", session=(data,), may_pass=True)


def huge_shape(draw: Draw) -> Malformed:
    num_dims = draw.choice([1, 2, 3, 8, 9, 64])
    shape = [draw.choice([2**31, 2**40, 2**62, 2**63 - 1]) for _ in range(num_dims)]
    if draw.random() < 0.3:
        shape[0] = 0
    return either(draw, "huge shape", pb.TensorData(data=bytes(16), shape=shape, dtype=pb.DTYPE_FLOAT32))


def wrong_length(draw: Draw) -> Malformed:
    num_bytes = draw.choice([0, 1, 15, 17, 64, 1 << 18])
    return either(draw, "wrong length", pb.TensorData(data=bytes(num_bytes), shape=[1, 1, 4], dtype=pb.DTYPE_FLOAT32))


def negative_size(draw: Draw) -> Malformed:
    shape = [draw.choice([-1, -4, -(2**63)]), 1, 4][: draw.choice([1, 3])]
    return either(draw, "negative size", pb.TensorData(data=bytes(16), shape=shape, dtype=pb.DTYPE_FLOAT32))


def unknown_dtype(draw: Draw) -> Malformed:
    dtype = draw.choice([0, 16, 99, -1, 2**31 - 1])
    tensor = pb.TensorData(data=bytes(16), shape=[1, 1, 4])
    # Over the wire any number may come.
    tensor.MergeFromString(b"\x18" + varint(dtype & (2**64 - 1)))
    return either(draw, "unknown dtype", tensor)


def wrong_hidden_states(draw: Draw) -> Malformed:
    tensor = draw.choice([
        torch.zeros(1, 1, 5), torch.zeros(1, 4), torch.zeros(4), torch.zeros(1, 0, 4), torch.zeros(0, 1, 4),
        torch.zeros(1, 1, 4, dtype=torch.int64), torch.zeros(1, 1, 4, dtype=torch.float64), torch.zeros(1, 65, 4),
        torch.full((1, 1, 4), float("nan")), torch.full((1, 1, 4), float("-inf")),
    ])  # fmt: skip
    if draw.random() < 0.5:
        return Malformed("wrong hidden states", call=calls.encode_call(ComputeCall(tensor)))
    return Malformed("wrong hidden states", session=(plain(steps.encode_step(1, 0, Forward(tensor))),))


def wrong_beside(draw: Draw) -> Malformed:
    beside = draw.choice([torch.ones(1, 3), torch.ones(2, 1, dtype=torch.int64), torch.ones(1, 99, dtype=torch.int64)])
    forward = Forward(torch.zeros(1, 1, 4), *draw.choice([(beside, None), (None, beside)]))
    if draw.random() < 0.5:
        return Malformed(
            "wrong mask or positions",
            call=calls.encode_call(ComputeCall(forward.hidden, forward.attention_mask, forward.position_ids)),
        )
    return Malformed("wrong mask or positions", session=(plain(steps.encode_step(1, 0, forward)),))


def wrong_cache(draw: Draw) -> Malformed:
    """The running sum's cache is one entry, of layer 0, with a tensor `inputs` [B, P, H]."""
    good = {"inputs": torch.zeros(1, 2, 4)}
    entries, position = draw.choice([
        ([], 2),
        ([KVEntry(layer, "inputs", good) for layer in range(draw.randrange(2, 40))], 2),
        ([KVEntry(0, "inputs", {"keys": torch.zeros(1, 2, 4)})], 2),
        ([KVEntry(0, "inputs", {"inputs": torch.zeros(1, 2, 5)})], 2),
        ([KVEntry(0, "inputs", {"inputs": torch.zeros(3, 2, 4)})], 2),
        ([KVEntry(0, "inputs", {"inputs": torch.zeros(1, 2, 4, 1)})], 2),
        ([KVEntry(0, "inputs", {"inputs": torch.zeros(1, 2, 4, dtype=torch.int64)})], 2),
        ([KVEntry(0, "inputs", good)], draw.choice([0, 1, 3, 63, 2**40])),
    ])  # fmt: skip
    call = ComputeCall(torch.zeros(1, 1, 4), past_key_values=KVEntries(tuple(entries), position), use_cache=True)
    return Malformed("wrong cache", call=calls.encode_call(call))


def wrong_state(draw: Draw) -> Malformed:
    """A session of the running sum has its inputs as state, as many as it has tokens, and rows if it has any."""
    good = KVEntries((KVEntry(0, "inputs", {"inputs": torch.zeros(1, 2, 4)}),), 2)
    many = KVEntries(tuple(KVEntry(layer, "inputs", {}) for layer in range(draw.randrange(2, 40))), 2)
    other = KVEntries((KVEntry(0, "inputs", {"inputs": torch.zeros(1, 3, 4)}),), 2)
    long = KVEntries((KVEntry(0, "inputs", {"inputs": torch.zeros(1, 65, 4)}),), 65)
    states = [
        SessionState(good, None), SessionState(many, 1), SessionState(other, 1), SessionState(long, 1),
        SessionState(KVEntries((), 2), 1), SessionState(KVEntries((), 2**40), 1),
    ]  # fmt: skip
    return Malformed("wrong state", session=(steps.encode_import(draw.choice([1, 7]), draw.choice(states)),))


def nested_garbage(draw: Draw) -> Malformed:
    data = draw.randbytes(draw.randrange(1, 40))
    for _ in range(draw.choice([1, 3, 30, 200, 2000])):
        data = bytes([draw.randrange(1, 16) << 3 | 2]) + varint(len(data)) + data
    if draw.random() < 0.5:
        return Malformed("nested garbage", call=data)
    return Malformed("nested garbage", session=(data,), may_pass=True)


def misplaced_chunk(draw: Draw) -> Malformed:
    total = draw.choice([0, 1, 100, 1 << 20, 1 << 28, 1 << 40, 2**63])
    chunks = [
        pb.SessionRequest(
            chunk=pb.TensorChunk(
                data=bytes(draw.randrange(1, 200)), offset=draw.choice([0, 7, 200, 2**62]), total_bytes=total
            )
        ).SerializeToString()
        for _ in range(draw.randrange(1, 4))
    ]
    tensor = pb.TensorData(shape=[1, 1, 4], dtype=pb.DTYPE_FLOAT32, chunked_bytes=draw.choice([1, 16, 999, 1 << 40]))
    last = pb.SessionRequest(step_id=1, forward=pb.Forward(tensor=tensor)).SerializeToString()
    return Malformed("chunks out of place", session=(*chunks, last))


def unknown_codec(draw: Draw) -> Malformed:
    codec = draw.choice(["int8", "zstd", "no-such", "x" * 100_000])
    tensor = pb.TensorData(data=bytes(8), shape=[1, 1, 4], dtype=pb.DTYPE_FLOAT32, codec=codec, side=draw.randbytes(9))
    return either(draw, "codec not agreed on", tensor)


def out_of_turn(draw: Draw) -> Malformed:
    step_id, position = draw.choice([2, 99, 2**63]), draw.choice([1, 2**40])
    many = tuple(range(draw.choice([1, 20_000])))
    actions: list[Action] = [Forward(torch.zeros(1, 1, 4)), Reorder(()), Reorder(many), Crop(99), StartRecording()]
    return Malformed("step out of turn", session=(plain(steps.encode_step(step_id, position, draw.choice(actions))),))


def wrong_open(draw: Draw) -> Malformed:
    opening = draw.choice([
        steps.Open(session_id=""), steps.Open(session_id="x" * 129), steps.Open(session_id="x" * 1_000_000),
        steps.Open(session_id="never", resume=True), steps.Open(session_id="a\nb", resume=True),
        steps.Open(session_id="b", expected_fingerprint="y" * 100_000),
        steps.Open(session_id="c", codecs=RoleCodecs(hidden=Codecs("no-such", "z" * 10_000))),
        steps.Open(session_id="d", codecs=RoleCodecs(gradient=Codecs("no-such"), kv=Codecs("int8"))),
    ])  # fmt: skip
    return Malformed("wrong open", session=(steps.encode_close(), steps.encode_open(opening)))


def truncated(draw: Draw) -> Malformed:
    name, messages = draw.choice(REAL)
    *before, last = messages
    spoiled = last[: draw.randrange(1, len(last))]
    return placed("truncated", name, (*before, spoiled))


def flipped(draw: Draw) -> Malformed:
    name, messages = draw.choice(REAL)
    at = draw.randrange(len(messages))
    spoiled = bytearray(messages[at])
    for _ in range(draw.choice([1, 1, 1, 8])):
        spoiled[draw.randrange(len(spoiled))] ^= 1 << draw.randrange(8)
    return placed("flipped bits", name, (*messages[:at], bytes(spoiled), *messages[at + 1 :]))


def placed(kind: str, name: str, messages: tuple[bytes, ...]) -> Malformed:
    """A spoiled real message, where it belongs; what is left of it may make sense."""
    if name == "call":
        return Malformed(kind, call=messages[0], may_pass=True)
    return Malformed(kind, session=messages, may_pass=True)


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def plain(message: bytes | ChunkedMessage) -> bytes:
    """A message that was packed without chunks."""
    assert isinstance(message, bytes)
    return message


def real_messages() -> list[tuple[str, tuple[bytes, ...]]]:
    """What good clients send to a running sum: whether it is a call or of a session, and its messages."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 2, 4, generator=generator)
    mask, position_ids = torch.ones(1, 4, dtype=torch.bool), torch.tensor([[2, 3]])
    past = KVEntries((KVEntry(0, "inputs", {"inputs": torch.randn(1, 2, 4, generator=generator)}),), 2)
    roles = RoleCodecs(hidden=Codecs("int8", "bf16"), gradient=Codecs("bf16"), kv=Codecs("zstd", "bf16"))
    chunked = steps.encode_step(1, 0, Forward(hidden), Packing("", 8))
    assert isinstance(chunked, ChunkedMessage)
    return [
        ("call", (calls.encode_call(ComputeCall(hidden, mask, position_ids, past, True), "running-sum"),)),
        ("call", (calls.encode_call(ComputeCall(hidden)),)),
        ("call", (calls.encode_call(ComputeCall(hidden, None, None, past, True), kv=Codecs("bf16", "zstd")),)),
        ("session", (plain(steps.encode_step(1, 0, Forward(hidden, None, position_ids))),)),
        ("session", tuple(chunked)),
        ("session", (plain(steps.encode_step(1, 0, Reorder((0, 0)))),)),
        ("session", (plain(steps.encode_step(1, 0, Crop(1))),)),
        ("session", (steps.encode_open(steps.Open("s", "running-sum", codecs=roles, timings=True)),)),
        ("session", (steps.encode_import(3, SessionState(past, 1)),)),
        ("session", (steps.encode_import(3, SessionState(past, 1), "bf16"),)),
        ("session", (steps.encode_export(1, 0),)),
        ("session", (steps.encode_close(),)),
    ]


REAL = real_messages()
KINDS: list[Callable[[Draw], Malformed]] = [
    random_bytes,
    huge_shape,
    wrong_length,
    negative_size,
    unknown_dtype,
    wrong_hidden_states,
    wrong_beside,
    wrong_cache,
    wrong_state,
    nested_garbage,
    misplaced_chunk,
    unknown_codec,
    out_of_turn,
    wrong_open,
    truncated,
    flipped,
]
