"""What a training pass says of mixed precision, as bytes and back."""

import pytest
import torch

from splitlearn_comm import InvalidRequestError
from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.codec import TensorCodec
from splitlearn_comm.framing.chunks import whole
from splitlearn_comm.framing.training import encode_training, training_action
from splitlearn_comm.training import ForwardPass, TrainingAction

HIDDEN = torch.ones(2, 3, 4, dtype=torch.bfloat16)


def read(message: pb.SessionRequest) -> TrainingAction | None:
    return training_action(message, TensorCodec().decode, max_bytes=1 << 20)


@pytest.mark.parametrize("autocast", [None, torch.float16, torch.bfloat16])
def test_a_pass_says_the_autocast_that_it_runs_under(autocast: torch.dtype | None) -> None:
    data = whole(encode_training(pb.SessionRequest(step_id=1), ForwardPass(7, HIDDEN, autocast=autocast)))
    action = read(pb.SessionRequest.FromString(data))
    assert isinstance(action, ForwardPass)
    assert action.autocast is autocast
    assert action.hidden.dtype is torch.bfloat16


def test_a_number_of_no_dtype_is_refused() -> None:
    data = whole(encode_training(pb.SessionRequest(step_id=1), ForwardPass(7, HIDDEN, autocast=torch.bfloat16)))
    message = pb.SessionRequest.FromString(data)
    message.forward_pass.autocast = 99  # type: ignore[assignment]
    with pytest.raises(InvalidRequestError, match="99 is the number of no dtype"):
        read(message)
