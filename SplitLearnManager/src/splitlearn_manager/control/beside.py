"""What the Open Inference Protocol cannot say: times and sessions of models, and the end of the server."""

from collections.abc import Callable

from splitlearn_comm import InvalidRequestError
from splitlearn_manager._proto.splitlearn.v1 import control_pb2 as pb
from splitlearn_manager.control.models import ControlledModels, ModelRow
from splitlearn_manager.control.surface import Method

SERVICE = pb.DESCRIPTOR.services_by_name["ControlService"].full_name


class BesideService:
    """Answers the calls of `splitlearn.v1.ControlService`.

    Args:
        models: what is served.
        is_serving: whether the server takes calls and does not stop.
        drain: begins to end the server, within so many seconds or, of None, as it is configured; does not wait.
    """

    def __init__(
        self, models: ControlledModels, is_serving: Callable[[], bool], drain: Callable[[float | None], object]
    ) -> None:
        self._models = models
        self._is_serving = is_serving
        self._drain = drain

    def methods(self) -> tuple[Method, ...]:
        """Return all calls."""
        return (
            Method(path=f"/{SERVICE}/Describe", request=pb.DescribeRequest, answer=self._describe),
            Method(path=f"/{SERVICE}/Drain", request=pb.DrainRequest, answer=self._begin_drain, is_for_operators=True),
        )

    async def _describe(self, _: pb.DescribeRequest) -> pb.DescribeResponse:
        return pb.DescribeResponse(draining=not self._is_serving(), models=map(described, self._models.rows()))

    async def _begin_drain(self, request: pb.DrainRequest) -> pb.DrainResponse:
        grace_s = request.grace_s if request.HasField("grace_s") else None
        if grace_s is not None and not 0 <= grace_s < float("inf"):
            raise InvalidRequestError(f"grace_s must be a number of seconds; got {grace_s}")
        num_sessions = sum(row.num_sessions for row in self._models.rows())
        self._drain(grace_s)
        return pb.DrainResponse(num_sessions=num_sessions)


def described(row: ModelRow) -> pb.ModelDescription:
    """Return all that is told of a model."""
    return pb.ModelDescription(
        name=row.name,
        version=str(row.version),
        state=row.state.name,
        reason=row.told_reason,
        since_unix_s=row.since,
        num_sessions=row.num_sessions,
        progress=row.progress,
    )
