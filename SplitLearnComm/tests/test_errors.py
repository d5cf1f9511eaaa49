import grpc
import pytest

from splitlearn_comm import errors
from splitlearn_comm.errors import CODES, CommError, error_class

ALL = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, CommError)]


def test_every_error_has_a_code_of_its_own() -> None:
    assert set(ALL) == set(CODES)


@pytest.mark.parametrize("cls", ALL)
def test_an_error_comes_back_as_itself(cls: type[CommError]) -> None:
    error = cls("why", request_id="id")
    assert (str(error), error.request_id, error.code) == ("why", "id", CODES[cls])
    assert error_class(error.code, cls.__name__) is cls


def test_a_code_alone_means_the_general_error() -> None:
    assert error_class(grpc.StatusCode.RESOURCE_EXHAUSTED) is errors.ResourceExhaustedError
    assert error_class(grpc.StatusCode.FAILED_PRECONDITION) is errors.StepOrderError
    assert error_class(grpc.StatusCode.DATA_LOSS) is CommError


def test_a_peer_cannot_choose_a_class_that_does_not_go_with_its_code() -> None:
    assert error_class(grpc.StatusCode.NOT_FOUND, "ServerUnavailableError") is errors.SessionNotFoundError


def test_the_tree_at_the_top_is_the_tree() -> None:
    lines = [line.lstrip("│ ") for line in (errors.__doc__ or "").splitlines()]
    drawn = [line.split()[1] for line in lines if line.startswith(("├", "└"))]
    assert set(drawn) | {"CommError"} == {cls.__name__ for cls in ALL}
