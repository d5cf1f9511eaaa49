import importlib
import inspect
import pkgutil

import pytest
import torch

import splitlearn_comm.codec as package
from splitlearn_comm.codec import (
    Coded,
    CompressedTensorCodec,
    Payload,
    TensorCodec,
    codec_named,
    codec_names,
    decode_payload,
    encode_payload,
    measure_loss,
    register_codec,
    registry,
)


class SignCodec(CompressedTensorCodec):
    """A user's codec: the signs of the elements, one byte each, and one number for their size."""

    name = "sign"

    def compress(self, tensor: torch.Tensor) -> Coded | None:
        if not tensor.is_floating_point():
            return None
        return Coded(tensor.sign().to(torch.int8), tensor.abs().mean().float().numpy().tobytes())

    def decompress(
        self, data: memoryview, side: memoryview, shape: tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor:
        size = torch.frombuffer(bytearray(side), dtype=torch.float32)
        return (torch.frombuffer(bytearray(data), dtype=torch.int8) * size).to(dtype).view(shape)


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_codecs", dict(registry._codecs))


def test_every_codec_of_the_package_is_registered() -> None:
    modules = [
        importlib.import_module(f"{package.__name__}.{found.name}") for found in pkgutil.iter_modules(package.__path__)
    ]
    classes = {
        thing
        for module in modules
        for thing in vars(module).values()
        if inspect.isclass(thing) and issubclass(thing, TensorCodec) and not inspect.isabstract(thing)
    }
    assert {type(codec_named(name)) for name in codec_names()} == classes
    assert codec_names() == ("raw", "bf16", "fp16", "int8", "int4", "zstd")
    assert [name for name in codec_names() if codec_named(name).is_lossless] == ["raw", "zstd"]


@pytest.mark.usefixtures("own_registry")
def test_a_users_codec_goes_over_the_wire() -> None:
    register_codec(SignCodec())
    tensor = torch.tensor([[3.0, -1.0, 2.0]])
    payload = encode_payload(tensor, "sign")
    message = payload.message()
    assert (message.codec, len(message.data), len(message.side)) == ("sign", 3, 4)
    assert torch.equal(decode_payload(Payload.of(message)), torch.tensor([[2.0, -2.0, 2.0]]))
    assert encode_payload(torch.arange(3), "sign").codec == ""
    assert measure_loss(codec_named("sign"), tensor).max_abs == 1
    assert not codec_named("sign").is_lossless


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize("name", ["raw", "int8", "", "auto", "ü", "a\nb", "x" * 33])
def test_a_name_that_is_taken_or_none_is_refused(name: str) -> None:
    codec = SignCodec()
    codec.name = name
    known = codec_names()
    with pytest.raises(ValueError, match=r"raw, bf16|1 to 32 ASCII"):
        register_codec(codec)
    assert codec_names() == known


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(ValueError, match="no codec 'int9': expected one of raw, bf16, fp16, int8, int4, zstd"):
        encode_payload(torch.ones(3), "int9")


@pytest.mark.usefixtures("own_registry")
def test_a_missing_extra_is_named() -> None:
    codec = SignCodec()
    codec.missing_extra = "client"
    register_codec(codec)
    with pytest.raises(ImportError, match=r"pip install 'splitlearn-comm\[client\]'"):
        codec_named("sign")


def test_a_codec_may_hand_over_a_tensor_with_strides() -> None:
    class Transposed(SignCodec):
        def compress(self, tensor: torch.Tensor) -> Coded | None:
            return Coded(tensor.sign().to(torch.int8).T, tensor.abs().mean().numpy().tobytes())

    data = Transposed().pack(torch.tensor([[1.0, -2.0], [3.0, 4.0]])).data
    assert bytes(data) == b"\x01\x01\xff\x01"


@pytest.mark.usefixtures("own_registry")
def test_a_codec_that_makes_another_shape_is_its_authors_fault() -> None:
    class Wrong(SignCodec):
        def decompress(
            self, data: memoryview, side: memoryview, shape: tuple[int, ...], dtype: torch.dtype
        ) -> torch.Tensor:
            return torch.ones(1)

    with pytest.raises(RuntimeError, match="mend its decompress"):
        Wrong().decode(Wrong().encode(torch.ones(2, 2)))
