"""Caches that travel: with a stateless call, or from one server to another."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.codec import Payload, decode_payload, encode_payload
from splitlearn_comm.errors import MessageTooLargeError
from splitlearn_comm.messages import KVEntries, KVEntry
from splitlearn_comm.protocol import MAX_MESSAGE_BYTES


def encode_cache(cache: KVEntries | None, codec: str = "") -> pb.KVCache | None:
    """The message of a cache that may be absent.

    Args:
        cache: What a host made.
        codec: Name of the codec its tensors go through; empty: raw.

    Raises:
        InvalidRequestError: A tensor in it cannot be sent.
    """
    if cache is None:
        return None
    entries = [_encode_entry(entry, codec or "raw") for entry in cache.entries]
    return pb.KVCache(entries=entries, position=cache.position)


def decode_cache(
    message: pb.KVCache, allowed: Collection[str] = (), *, max_bytes: int = MAX_MESSAGE_BYTES
) -> KVEntries:
    """The cache in a message.

    Args:
        message: What came.
        allowed: Names of the codecs that were agreed on; raw always is.
        max_bytes: Of all its tensors together: a few that came can stand for many.

    Raises:
        InvalidRequestError: A tensor in it is malformed.
        UnsupportedOperationError: A tensor came through a codec that was not agreed on.
        MessageTooLargeError: It would be larger than this side takes.
    """
    payloads = [[(named.name, Payload.of(named.tensor)) for named in entry.tensors] for entry in message.entries]
    # What came raw is as large already.
    num_bytes = sum(
        payload.tensor_bytes if payload.codec else len(payload.data) for tensors in payloads for _, payload in tensors
    )
    if num_bytes > max_bytes:
        raise MessageTooLargeError(
            f"a cache that would have {num_bytes} bytes: at most {max_bytes} are taken; go on with a shorter sequence "
            f"or fewer rows, or keep it on the server in a session"
        )
    decode = partial(decode_payload, allowed=allowed, max_tensor_bytes=max_bytes)
    entries = (
        KVEntry(entry.layer, entry.kind, {name: decode(payload) for name, payload in tensors})
        for entry, tensors in zip(message.entries, payloads, strict=True)
    )
    return KVEntries(tuple(entries), message.position)


def cache_of(
    message: pb.ComputeRequest | pb.ComputeResponse, allowed: Collection[str], max_bytes: int
) -> KVEntries | None:
    """The cache of a call or its result, None where it has none; raises as `decode_cache` does."""
    if not message.HasField("past_key_values"):
        return None
    return decode_cache(message.past_key_values, allowed, max_bytes=max_bytes)


def _encode_entry(entry: KVEntry, codec: str) -> pb.KVCacheEntry:
    tensors = [
        pb.NamedTensor(name=name, tensor=encode_payload(tensor, codec).message())
        for name, tensor in entry.tensors.items()
    ]
    return pb.KVCacheEntry(layer=entry.layer, kind=entry.kind, tensors=tensors)
