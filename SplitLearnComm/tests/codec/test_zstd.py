"""The lossless codec, and frames that lie."""

import math
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlearn_comm import InvalidRequestError
from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.codec import DTYPES, codec_named

zstandard = pytest.importorskip("zstandard")
ZSTD = codec_named("zstd")


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(sorted(DTYPES.values(), key=str)), st.lists(st.integers(0, 40), max_size=3), st.integers(0, 99))
def test_every_bit_comes_back(dtype: torch.dtype, shape: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    high = 2 if dtype is torch.bool else 256
    words = torch.randint(0, high, (math.prod(shape), dtype.itemsize), dtype=torch.uint8, generator=generator)
    words[:, dtype.itemsize // 2 :] //= 64  # so that there is something to find
    tensor = words.view(-1).view(dtype).view(shape) if words.numel() else torch.empty(shape, dtype=dtype)
    came = ZSTD.decode(ZSTD.encode(tensor))
    assert came.dtype == dtype
    assert came.shape == tensor.shape
    assert torch.equal(came.view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.bool, torch.int64])
def test_it_becomes_smaller_and_can_be_written_to(dtype: torch.dtype) -> None:
    tensor = (torch.arange(4096) % 7).to(dtype).view(64, 64)
    message = ZSTD.encode(tensor)
    assert message.codec == "zstd"
    assert len(message.data) < tensor.nbytes / 2
    first = ZSTD.decode(message)
    first.zero_()
    assert torch.equal(ZSTD.decode(message), tensor)


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 0.86), (torch.bfloat16, 0.70)])
@pytest.mark.parametrize("num_tokens", [1, 16, 1000])
def test_the_shuffle_finds_what_is_in_few_tokens_too(dtype: torch.dtype, share: float, num_tokens: int) -> None:
    hidden = torch.randn(num_tokens, 768, generator=torch.Generator().manual_seed(0)).to(dtype)
    headers = 0.03 if num_tokens == 1 else 0.0
    assert len(ZSTD.encode(hidden).data) < (share + headers) * hidden.nbytes


def test_any_byte_of_a_bool_is_zero_or_one() -> None:
    message = ZSTD.encode((torch.arange(1000) % 3).to(torch.uint8))
    message.dtype = pb.DTYPE_BOOL
    assert ZSTD.decode(message).view(torch.uint8)[:4].tolist() == [0, 1, 1, 0]


def test_noise_travels_raw() -> None:
    words = torch.randint(0, 256, (4096,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert ZSTD.encode(words.view(torch.float32)).codec == ""


def test_a_bomb_is_refused_before_memory_is_allocated() -> None:
    message = ZSTD.encode(torch.zeros(1024))
    bomb = zstandard.ZstdCompressor().compress(bytes(64 * 2**20))
    message.data = bomb
    tracemalloc.start()
    with pytest.raises(InvalidRequestError, match="expected a frame of 4096 bytes, came one that states 67108864"):
        ZSTD.decode(message)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def without_stated_size(content: bytes) -> bytes:
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    frame: bytes = compressor.compress(content) + compressor.flush()
    return frame


def stating_less(content: bytes, stated: int) -> bytes:
    """A frame whose header states another size than its content has: 8 bytes of size, one segment."""
    frame = zstandard.ZstdCompressor(write_checksum=False).compress(content)
    header = zstandard.get_frame_parameters(frame)
    assert header.content_size == len(content)
    blocks = frame[zstandard.frame_header_size(frame) :]
    return b"".join((frame[:4], bytes([0b1110_0000]), stated.to_bytes(8, "little"), blocks))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no frame at all",
        without_stated_size(bytes(4096)),
        stating_less(bytes(2**20), 4096),
        zstandard.ZstdCompressor().compress(bytes(4095)),
        zstandard.ZstdCompressor().compress(bytes(4096))[:-1],
        zstandard.ZstdCompressor().compress(bytes(4096)) + b"more",
        zstandard.ZstdCompressor().compress(bytes(4096)) * 2,
    ],
    ids=["empty", "garbage", "no size", "lying size", "too short", "cut off", "bytes behind it", "two frames"],
)
def test_a_frame_that_is_not_the_tensor_is_refused(data: bytes) -> None:
    message = ZSTD.encode(torch.zeros(1024))
    assert ZSTD.decode(message).shape == (1024,)
    message.data = data
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        ZSTD.decode(message)
