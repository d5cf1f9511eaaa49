"""Caches that travel: with a stateless call, or from one server to another."""

from __future__ import annotations

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.framing.fields import CODEC
from splitlearn_comm.messages import KVEntries, KVEntry


def encode_cache(cache: KVEntries | None) -> pb.KVCache | None:
    """The message of a cache that may be absent."""
    if cache is None:
        return None
    return pb.KVCache(entries=[_encode_entry(entry) for entry in cache.entries], position=cache.position)


def decode_cache(message: pb.KVCache) -> KVEntries:
    """The cache in a message. Raises `InvalidRequestError` if a tensor in it is malformed."""
    return KVEntries(tuple(_decode_entry(entry) for entry in message.entries), message.position)


def cache_of(message: pb.ComputeRequest | pb.ComputeResponse) -> KVEntries | None:
    """The cache of a call or its result, None where it has none."""
    return decode_cache(message.past_key_values) if message.HasField("past_key_values") else None


def _encode_entry(entry: KVEntry) -> pb.KVCacheEntry:
    tensors = [pb.NamedTensor(name=name, tensor=CODEC.encode(tensor)) for name, tensor in entry.tensors.items()]
    return pb.KVCacheEntry(layer=entry.layer, kind=entry.kind, tensors=tensors)


def _decode_entry(entry: pb.KVCacheEntry) -> KVEntry:
    tensors = {named.name: CODEC.decode(named.tensor) for named in entry.tensors}
    return KVEntry(entry.layer, entry.kind, tensors)
