import pytest
import torch

from splitlearn_comm.codec import codec_named, measure_loss


def test_the_numbers_are_those_of_the_definition() -> None:
    tensor = torch.tensor([[1.0, 1.0 + 2**-9, 256.0, -3.0]])
    came = torch.tensor([[1.0, 1.0, 256.0, -3.0]])
    loss = measure_loss(codec_named("bf16"), tensor)
    assert loss.payload_ratio == 0.5
    assert loss.max_abs == 2**-9
    assert loss.relative_rms == pytest.approx(((came - tensor).norm() / tensor.norm()).item(), rel=1e-5)
    assert str(loss) == "bf16: 0.5000 of the bytes, relative RMS error 7.63e-06, largest error 1.95e-03"


def test_raw_loses_nothing_and_a_codec_that_declines_says_so() -> None:
    loss = measure_loss(codec_named("raw"), torch.randn(3, 5))
    assert (loss.payload_ratio, loss.relative_rms, loss.max_abs, loss.used) == (1, 0, 0, True)
    declined = measure_loss(codec_named("int8"), torch.arange(5))
    assert not declined.used
    assert str(declined).startswith("int8 (left raw): 1.0000 of the bytes")
    assert measure_loss(codec_named("int8"), torch.zeros(2, 5)).relative_rms == 0
