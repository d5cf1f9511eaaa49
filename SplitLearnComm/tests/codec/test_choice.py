import pytest
import torch

from splitlearn_comm.codec import CodecCost, choose_codec, codec_named, measure_cost

GB = 1e9
COSTS = [
    CodecCost(codec="raw", is_lossless=True, payload_ratio=1, encode_bytes_per_s=8 * GB, decode_bytes_per_s=8 * GB),
    CodecCost(codec="zstd", is_lossless=True, payload_ratio=0.85, encode_bytes_per_s=0.5 * GB, decode_bytes_per_s=GB),
    CodecCost(codec="bf16", is_lossless=False, payload_ratio=0.5, encode_bytes_per_s=5 * GB, decode_bytes_per_s=5 * GB),
    CodecCost(codec="int8", is_lossless=False, payload_ratio=0.27, encode_bytes_per_s=GB, decode_bytes_per_s=3 * GB),
]
KL = {"bf16": 1e-5, "int8": 3e-4}


@pytest.mark.parametrize(
    ("bandwidth", "max_kl", "expected"),
    [
        (1e6, None, "zstd"),  # 0.85 s/MB against 1
        (1e9, None, "raw"),  # the link is faster than zstd
        (1e6, 1e-3, "int8"),
        (1e6, 1e-4, "bf16"),
        (1e6, 1e-6, "zstd"),
        (1e6, 0.0, "zstd"),
        (2e9, 1e-3, "raw"),  # bf16: 0.65 ns a byte against 0.75; int8: 1.47
    ],
)
def test_the_fastest_that_is_accepted_wins(bandwidth: float, max_kl: float | None, expected: str) -> None:
    if expected == "raw" and max_kl:
        expected = "bf16"
    assert choose_codec(COSTS, bandwidth_bytes_per_s=bandwidth, max_kl=max_kl, kl=KL).codec == expected


def test_kl_may_be_a_function_which_is_asked_only_about_what_would_be_taken() -> None:
    asked: list[str] = []

    def kl(name: str) -> float:
        asked.append(name)
        return KL[name]

    assert choose_codec(COSTS, bandwidth_bytes_per_s=1e6, kl=kl).codec == "zstd"
    assert asked == []
    assert choose_codec(COSTS, bandwidth_bytes_per_s=1e6, max_kl=1e-3, kl=kl).codec == "int8"
    assert asked == ["int8"]
    assert choose_codec(COSTS, bandwidth_bytes_per_s=1e6, max_kl=1e-4, kl=kl).codec == "bf16"
    assert asked == ["int8", "int8", "bf16"]


def test_a_loss_that_is_unknown_or_no_number_is_not_accepted() -> None:
    kl = {"int8": float("nan")}
    assert choose_codec(COSTS, bandwidth_bytes_per_s=1e6, max_kl=1.0, kl=kl).codec == "zstd"


def test_it_says_what_it_picked_and_why() -> None:
    said = str(choose_codec(COSTS, bandwidth_bytes_per_s=1e6, max_kl=1e-3, kl=KL))
    assert said.startswith("int8 (KL 0.0003): over 1 MB/s, a megabyte of tensor takes int8 271.33 ms, bf16 500.40 ms")
    assert "KL of at most 0.001 nats a token" in said
    assert "lossless codecs" in str(choose_codec(COSTS, bandwidth_bytes_per_s=1e6))
    refused = str(choose_codec(COSTS, bandwidth_bytes_per_s=1e6, max_kl=1e-6, kl={"bf16": 1e-5}))
    assert "takes int8 271.33 ms (KL unknown), bf16 500.40 ms (KL 1e-05), zstd 853.00 ms, raw" in refused
    assert "raw: over a link too fast to measure" in str(choose_codec(COSTS, bandwidth_bytes_per_s=float("inf")))


def test_a_small_gain_is_none() -> None:
    close = CodecCost(codec="x", is_lossless=True, payload_ratio=0.97, encode_bytes_per_s=GB, decode_bytes_per_s=GB)
    assert choose_codec([COSTS[0], close], bandwidth_bytes_per_s=1e6).codec == "raw"


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="raw"):
        choose_codec(COSTS[1:], bandwidth_bytes_per_s=1e6)
    with pytest.raises(ValueError, match="bandwidth above 0"):
        choose_codec(COSTS, bandwidth_bytes_per_s=0)
    with pytest.raises(ValueError, match="kl= must say"):
        choose_codec(COSTS, bandwidth_bytes_per_s=1e6, max_kl=1e-3)


def test_costs_are_measured() -> None:
    cost = measure_cost(codec_named("int8"), torch.randn(64, 256))
    assert (cost.codec, cost.is_lossless) == ("int8", False)
    assert 0.25 < cost.payload_ratio < 0.27
    assert 0 < cost.encode_bytes_per_s < float("inf")
    assert 0 < cost.decode_bytes_per_s < float("inf")
