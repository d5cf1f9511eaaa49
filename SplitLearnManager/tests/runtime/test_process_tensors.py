"""A few hidden states as bytes and back."""

import math

import pytest
import torch

from splitlearn_comm.codec import DTYPES
from splitlearn_manager.runtime.process_tensors import MAX_BYTES, due_of, packed, unpacked


@pytest.mark.parametrize("dtype", sorted(DTYPES.values(), key=str), ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 3, 5), (2, 0, 5)], ids=str)
def test_every_dtype_comes_back_to_the_last_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor_BTH = (torch.rand(shape) > 0.5) if dtype is torch.bool else (torch.randn(shape) * 9).abs().to(dtype)
    payload = packed(tensor_BTH)
    assert payload is not None
    came_BTH = unpacked(payload)
    assert (came_BTH.dtype, came_BTH.shape) == (dtype, tensor_BTH.shape)
    assert torch.equal(came_BTH.view(torch.uint8), tensor_BTH.view(torch.uint8))
    if came_BTH.numel():
        came_BTH.zero_()


@pytest.mark.parametrize("due_s", [math.inf, 1234.5])
def test_until_when_it_is_of_use_goes_with_it(due_s: float) -> None:
    payload = packed(torch.ones(1, 1, 8), due_s)
    assert payload is not None
    assert due_of(payload) == due_s


def test_a_tensor_that_is_not_contiguous_comes_back_as_it_reads() -> None:
    tensor_BTH = torch.randn(3, 4, 5).transpose(0, 1).requires_grad_()
    payload = packed(tensor_BTH)
    assert payload is not None
    assert torch.equal(unpacked(payload), tensor_BTH)


def test_what_is_large_or_of_other_dimensions_goes_another_way() -> None:
    assert packed(torch.zeros(1, 1, MAX_BYTES // 4)) is not None
    assert packed(torch.zeros(1, 1, MAX_BYTES // 4 + 1)) is None
    assert packed(torch.zeros(4, 4)) is None
