"""The codecs that lose something: how much, on what, and what they leave raw."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlearn_comm.codec import TensorCodec, codec_named, measure_loss

LOSSY = ["bf16", "fp16", "int8", "int4"]
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
shapes = st.lists(st.integers(1, 6), max_size=3)


def came_back(codec: TensorCodec, tensor: torch.Tensor) -> torch.Tensor:
    return codec.decode(type(codec.encode(tensor)).FromString(codec.encode(tensor).SerializeToString()))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_outliers(width: int, columns: list[int], factor: float) -> torch.Tensor:
    hidden = noise(2, 32, width)
    hidden[..., columns] *= factor
    return hidden


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(LOSSY), st.sampled_from(FLOATS), shapes, st.integers(1, 300), st.integers(-8, 3), st.data())
def test_what_comes_back_is_near(
    name: str, dtype: torch.dtype, shape: list[int], width: int, exponent: int, data: st.DataObject
) -> None:
    tensor = (noise(*shape, width, seed=data.draw(st.integers(0, 99))) * 10.0**exponent).to(dtype)
    came = came_back(codec_named(name), tensor)
    assert came.shape == tensor.shape
    assert came.dtype == tensor.dtype
    error, size = (came.double() - tensor.double()).abs(), tensor.double().abs()
    # Below 6e-5 float16 has fixed steps of 2^-24, on the way or at the end.
    fixed = 2**-24 if name == "fp16" or dtype is torch.float16 else 0
    if name == "int4":
        # Orthogonal, so: 32 elements, each half a step off, a step at most a seventh of the group's norm.
        bound = (math.sqrt(8 / 49) * 1.01 + torch.finfo(dtype).eps) * size.norm(dim=-1) + fixed * math.sqrt(width)
        assert bool((error.norm(dim=-1) <= bound).all())
    else:
        steps = {"bf16": 2**-8, "fp16": 2**-11, "int8": 1 / 254}[name] + torch.finfo(dtype).eps
        assert bool((error <= 1.01 * steps * size.amax(-1, keepdim=True) + fixed).all())


@pytest.mark.parametrize("width", [160, 768])
@pytest.mark.parametrize("num_tokens", [1, 128])
def test_int8_takes_at_most_27_percent_of_float32(width: int, num_tokens: int) -> None:
    assert measure_loss(codec_named("int8"), noise(1, num_tokens, width)).payload_ratio <= 0.27


def test_int8_keeps_planted_outliers_from_harming_the_rest() -> None:
    columns = [3, 100, 101, 500, 700, 767]
    hidden = with_outliers(768, columns, 300)
    came = came_back(codec_named("int8"), hidden)
    others = torch.ones(768, dtype=torch.bool)
    others[columns] = False
    error = (came - hidden).abs()
    assert error[..., others].max() <= hidden[..., others].abs().max() / 127
    # With one scale for all, steps of the whole row's peak over 127 are ten times as wide.
    assert error[..., others].max() < hidden.abs().max() / 127 / 10
    assert error[..., columns].max() <= hidden.abs().max() / 32767


def test_the_number_of_bytes_follows_from_the_shape() -> None:
    for name in LOSSY:
        planted, plain = with_outliers(160, [1, 50, 90], 100), noise(2, 32, 160)
        codec = codec_named(name)
        assert codec.pack(planted).num_bytes == codec.pack(plain).num_bytes == codec.pack(plain * 0).num_bytes


def test_int4_spreads_planted_outliers() -> None:
    hidden = with_outliers(768, [3, 500], 30)
    plain = torch.empty_like(hidden)
    for group in range(0, 768, 32):
        part = hidden[..., group : group + 32]
        scale = part.abs().amax(-1, keepdim=True) / 7
        plain[..., group : group + 32] = (part / scale).round() * scale
    came = came_back(codec_named("int4"), hidden)
    assert (came - hidden).norm() < 0.9 * (plain - hidden).norm()
    assert measure_loss(codec_named("int4"), hidden).payload_ratio < 0.141


@pytest.mark.parametrize("width", [32, 64, 128, 256, 768])
def test_int4_spreads_a_row_of_one_number(width: int) -> None:
    """Without the flipped signs the rotation makes one large element of it, whose scale swallows its neighbours."""
    nearly = torch.ones(1, width) + 0.1 * noise(1, width)
    assert measure_loss(codec_named("int4"), nearly).relative_rms < 0.08


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.5),
        torch.empty(0),
        torch.empty(2, 0, 160),
        torch.arange(320).view(2, 160),
        torch.ones(2, 160, dtype=torch.bool),
        torch.ones(2, 160).to(torch.float8_e4m3fn),
        torch.tensor([1.0, float("nan"), 2.0]),
        torch.tensor([[1.0, 2.0], [float("-inf"), 2.0]]),
        torch.full((1, 200), float("nan")),
        torch.full((2, 3), 1e300, dtype=torch.float64),
    ],
    ids=lambda tensor: f"{tensor.dtype} {list(tensor.shape)}",
)
def test_what_a_codec_does_not_take_travels_raw(name: str, tensor: torch.Tensor) -> None:
    message = codec_named(name).encode(tensor)
    assert message == TensorCodec().encode(tensor)
    came = codec_named(name).decode(message)
    assert torch.equal(came.view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))


def test_a_nan_among_kept_columns_is_seen() -> None:
    hidden = with_outliers(256, [7], 1000)
    hidden[1, 5, 7] = float("nan")
    assert codec_named("int8").encode(hidden).codec == ""


def test_too_large_for_fp16_travels_raw_and_bf16_takes_it() -> None:
    hidden = noise(4, 8) * 1e6
    assert codec_named("fp16").encode(hidden).codec == ""
    assert codec_named("bf16").encode(hidden).codec == "bf16"


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_a_cast_gains_nothing_on_16_bits(name: str) -> None:
    assert codec_named(name).encode(noise(3, 4).bfloat16()).codec == ""


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_rows_of_zeros_and_tiny_numbers(name: str) -> None:
    hidden = noise(6, 192)
    hidden[1] = 0
    hidden[2] = 1e-44
    hidden[3] = -0.0
    hidden[4] *= 1e-30
    came = came_back(codec_named(name), hidden)
    assert codec_named(name).encode(hidden).codec == name
    assert came[[1, 3]].abs().max() == 0
    assert came[2].abs().max() < 1e-36
    assert (came[4] - hidden[4]).double().norm() < 0.2 * hidden[4].double().norm()


@pytest.mark.parametrize("dtype", FLOATS)
def test_int8_reaches_the_end_of_a_dtype_or_leaves_it_raw(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    tensor = torch.tensor([[largest, -largest, 1.0]], dtype=dtype)
    came = came_back(codec_named("int8"), tensor)
    assert bool(came.isfinite().all())
    assert abs(came[0, 0].item() / largest - 1) < 0.01


@pytest.mark.parametrize("name", LOSSY)
def test_strides_and_gradients_do_not_matter_and_the_tensor_is_left_alone(name: str) -> None:
    weight = noise(160, 6, 2).requires_grad_()
    view = weight.transpose(0, 2)
    before = view.detach().clone()
    came = came_back(codec_named(name), view)
    assert torch.equal(view.detach(), before)
    assert not came.requires_grad
    assert torch.equal(came, came_back(codec_named(name), before.contiguous()))


@pytest.mark.parametrize("name", LOSSY)
def test_what_comes_back_can_be_written_to(name: str) -> None:
    message = codec_named(name).encode(noise(2, 160))
    codec_named(name).decode(message).zero_()
    assert codec_named(name).decode(message).abs().sum() > 0


def test_wide_rows_number_their_columns_in_32_bits() -> None:
    hidden = noise(2, 2**16 + 1)
    hidden[:, 2**16] = 5000
    came = came_back(codec_named("int8"), hidden)
    assert abs(came[0, 2**16].item() - 5000) < 1
    assert (came - hidden)[:, :-1].abs().max() < 0.05
