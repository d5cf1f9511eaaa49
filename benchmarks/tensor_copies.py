"""Tensor to the bytes of a message and back, 16 MB of float32 raw: against two copies of it, and a repeated float.

Ours: the bytes of a whole response as a server sends it, and the tensor as a client gets it from them. The copies:
`bytes` of a view of the tensor's memory, then `bytes` of a view of those. All hold both results, so that all wait for
the same memory. The repeated float is what a message of `repeated float values` costs in the quickest way found:
filled from a list, serialised, parsed, read through numpy.
The second table has the codecs on the same tensor, without a message around them, against the two copies as well.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from benchmarks.pairs import MIN_PAIRS, interleaved, ratio_of
from benchmarks.servers import same_threads_everywhere
from splitlearn_comm import ComputeResult
from splitlearn_comm.codec import Payload, codec_names, decode_payload, encode_payload, memory_of
from splitlearn_comm.framing.calls import decode_result, encode_result

SHAPE = (1, 4096, 1024)
REPEATS = 5


def message(tensor: torch.Tensor) -> tuple[bytes, torch.Tensor]:
    """Encode and decode a response; return both, so that both are held."""
    data = encode_result(ComputeResult(tensor))
    return data, decode_result(data).tensor


def coded(codec: str, tensor: torch.Tensor) -> tuple[Payload, torch.Tensor]:
    """Encode and decode the tensor alone."""
    payload = encode_payload(tensor, codec)
    return payload, decode_payload(payload)


def two_copies(tensor: torch.Tensor) -> tuple[bytes, bytes]:
    """Copy the tensor's memory, and copy the copy."""
    first = bytes(memory_of(tensor))
    return first, bytes(memoryview(first))


def repeated_float(message_type: Any, tensor: torch.Tensor) -> tuple[bytes, torch.Tensor]:
    """Send the numbers one by one, as protobuf's own field of floats."""
    data = message_type(values=tensor.flatten().tolist()).SerializeToString()
    values = np.array(message_type.FromString(data).values, dtype=np.float32)
    return data, torch.from_numpy(values).view(tensor.shape)


def message_of_floats() -> Any:
    """Return the class of a message with one field, `repeated float values = 1`."""
    file = descriptor_pb2.FileDescriptorProto(name="floats.proto", package="bench", syntax="proto3")
    field = file.message_type.add(name="Floats").field.add(name="values", number=1)
    field.label = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
    field.type = descriptor_pb2.FieldDescriptorProto.TYPE_FLOAT
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("bench.Floats"))


def median_s(task: Callable[[], object], repeats: int) -> float:
    """Return the median time of a task; giving its memory back does not count."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = task()
        times.append(time.perf_counter() - started)
        del result
    return statistics.median(times)


def main(num_pairs: int) -> None:
    """Print the tables."""
    same_threads_everywhere()
    tensor = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    floats = partial(repeated_float, message_of_floats(), tensor)
    assert torch.equal(message(tensor)[1], tensor)
    assert torch.equal(floats()[1], tensor)
    ours = partial(median_s, partial(message, tensor), REPEATS)
    copies = partial(median_s, partial(two_copies, tensor), REPEATS)
    print(f"encode + decode of {tensor.nbytes / 2**20:.0f} MB float32, raw")
    print(f"  / two bytes(memoryview) copies: {ratio_of(*interleaved(ours, copies, num_pairs))} (mark: at most 1)")
    slow, fast = interleaved(partial(median_s, floats, 1), ours, MIN_PAIRS)
    print(f"  repeated float / ours: {ratio_of(slow, fast)} (mark: at least 10)")
    print("encode + decode through each codec / two copies")
    for name in codec_names()[1:]:
        codec = partial(median_s, partial(coded, name, tensor), 1)
        print(f"  {name}: {ratio_of(*interleaved(codec, copies, MIN_PAIRS))}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=21, help="interleaved pairs (at least 7)")
    main(parser.parse_args().pairs)
