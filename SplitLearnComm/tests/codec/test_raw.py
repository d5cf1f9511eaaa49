import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlearn_comm import InvalidRequestError, TensorCodec
from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.codec import DTYPES

CODEC = TensorCodec()
shapes = st.lists(st.integers(0, 5), max_size=5)


def over_the_wire(tensor: torch.Tensor) -> torch.Tensor:
    return CODEC.decode(pb.TensorData.FromString(CODEC.encode(tensor).SerializeToString()))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bytes(a.contiguous().view(-1).view(torch.uint8)) == bytes(b.contiguous().view(-1).view(torch.uint8))


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(sorted(DTYPES.values(), key=str)), shapes, st.integers(0, 2**31))
def test_every_bit_comes_back(dtype: torch.dtype, shape: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    high = 2 if dtype is torch.bool else 256
    num_bytes = math.prod(shape) * dtype.itemsize
    words = torch.randint(0, high, (num_bytes,), dtype=torch.uint8, generator=generator)
    tensor = (words if num_bytes else torch.empty(0, dtype=torch.uint8)).view(dtype).view(shape)
    assert same_bits(over_the_wire(tensor), tensor)


@settings(deadline=None, max_examples=50)
@given(st.permutations(range(4)), st.integers(1, 3))
def test_strides_do_not_matter(order: list[int], step: int) -> None:
    tensor = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5).permute(order)[..., ::step]
    assert torch.equal(over_the_wire(tensor), tensor)


def test_a_number_a_gradient_and_an_expanded_tensor_can_be_sent() -> None:
    weight = torch.ones(2, requires_grad=True)
    assert over_the_wire(torch.tensor(3.5)).item() == 3.5
    assert not over_the_wire(weight * 2).requires_grad
    assert torch.equal(over_the_wire(torch.ones(1).expand(3, 4)), torch.ones(3, 4))
    assert torch.equal(over_the_wire(torch._neg_view(torch.ones(2))), -torch.ones(2))


def test_what_arrives_is_writable_and_its_own() -> None:
    message = CODEC.encode(torch.zeros(4))
    first, second = CODEC.decode(message), CODEC.decode(message)
    first += 1
    assert second.sum() == 0
    assert CODEC.decode(message).sum() == 0


def test_any_byte_of_a_bool_is_zero_or_one() -> None:
    decoded = CODEC.decode(pb.TensorData(data=b"\x00\x01\x02\xff", shape=[4], dtype=pb.DTYPE_BOOL))
    assert bytes(decoded.view(torch.uint8)) == b"\x00\x01\x01\x01"


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.ones(2, dtype=torch.complex64), "complex64"),
        (torch.ones(2, device="meta"), "meta"),
        (torch.ones(2, 2).to_sparse(), "to_dense"),
    ],
)
def test_what_cannot_be_sent_is_refused_by_name(tensor: torch.Tensor, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        CODEC.encode(tensor)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (pb.TensorData(data=b"1234", shape=[1]), "unknown dtype.*came 0"),
        (pb.TensorData(data=b"1234", shape=[1], dtype=99), "unknown dtype.*came 99"),  # type: ignore[arg-type]
        (pb.TensorData(data=b"123", shape=[1], dtype=pb.DTYPE_FLOAT32), "needs 4 bytes, came 3"),
        (pb.TensorData(data=b"", shape=[2**62, 4], dtype=pb.DTYPE_FLOAT32), "beyond any memory"),
        (pb.TensorData(data=b"", shape=[0, 2**62, 2**62], dtype=pb.DTYPE_FLOAT32), "beyond any memory"),
        (pb.TensorData(data=b"1234", shape=[1], dtype=pb.DTYPE_FLOAT32, codec="int8"), "codec 'int8'"),
        (pb.TensorData(data=b"1234", shape=[1], dtype=pb.DTYPE_FLOAT32, side=b"1"), "raw one was expected"),
        (pb.TensorData(data=b"1234", shape=[-1, -1], dtype=pb.DTYPE_FLOAT32), "none negative"),
        (pb.TensorData(data=b"1" * 4, shape=[1] * 10**5, dtype=pb.DTYPE_FLOAT32), "at most 8 .* came 100000 dim"),
    ],
)
def test_what_does_not_agree_with_itself_is_refused(message: pb.TensorData, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        CODEC.decode(message)
