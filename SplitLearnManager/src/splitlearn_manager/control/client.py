"""How operators ask: a client of the control surface."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import Message

from splitlearn_comm import CommError
from splitlearn_comm.client import ClientTLS
from splitlearn_comm.client.credentials import Credentials
from splitlearn_comm.client.failures import translate
from splitlearn_comm.protocol import KIND_METADATA
from splitlearn_manager._proto.inference import grpc_service_pb2 as inference_pb
from splitlearn_manager._proto.splitlearn.v1 import control_pb2
from splitlearn_manager.errors import CODES, ManagerError

MessageT = TypeVar("MessageT", bound=Message)
Parameter = str | int | bool
INFERENCE = "/inference.GRPCInferenceService/"
CONTROL = "/splitlearn.v1.ControlService/"
_BY_NAME = {cls.__name__: cls for cls in CODES}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelState:
    """One version of a model, as the server tells of it."""

    name: str
    version: str
    state: str
    """`"UNLOADED"`, `"LOADING"`, `"WARMING"`, `"READY"`, `"DRAINING"`, `"UNLOADING"` or `"FAILED"`."""
    reason: str
    """Why."""
    since: float
    """Since when, in seconds since 1970 (UTC)."""
    num_sessions: int
    """Sessions, and calls, that it serves now."""
    progress: str
    """How far its load is; empty beside a load."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerState:
    """A server and its models."""

    is_draining: bool
    """Whether it stops, and takes no new sessions."""
    models: tuple[ModelState, ...]
    """By name and version."""


class ControlClient:
    """Asks a server for its state, to load and unload models, and to end. Use it with `with`, or close it.

    Errors are those that the server raised: of `splitlearn_manager` (`ModelNotFoundError`, `ModelStateError`, …) and of
    `splitlearn_comm` (`PermissionDeniedError`, `InvalidRequestError`, `ServerUnavailableError`, …).

    Args:
        address: of the server, `"host:port"` or `"unix:/path"`.
        token: the operator's; None to send none.
        tls: as of `splitlearn_comm.GRPCComputeClient`.
        insecure: send the token in the clear to another machine.
        timeout_s: for an answer, in seconds; loading and unloading may take as long as they take.

    Raises:
        ValueError: the token would travel in the clear to another machine.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        tls: ClientTLS | bool = False,
        insecure: bool = False,
        timeout_s: float = 10.0,
    ) -> None:
        self._address = address
        self._credentials = Credentials(token=token, tls=tls, insecure=insecure)
        self._credentials.check(address)
        self._timeout_s = timeout_s
        self._channel = self._credentials.channel(address, [("grpc.use_local_subchannel_pool", 1)])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. May be called twice."""
        self._channel.close()

    def describe(self) -> ServerState:
        """Return the state of the server and of all its models."""
        answer = self._call(CONTROL + "Describe", control_pb2.DescribeRequest(), control_pb2.DescribeResponse)
        return ServerState(is_draining=answer.draining, models=tuple(map(_model_state, answer.models)))

    def load_model(self, name: str, parameters: Mapping[str, Parameter] | None = None) -> None:
        """Load a model and wait until it is ready; a wait that is interrupted cancels the load.

        Args:
            name: what clients ask for.
            parameters: what to load (`model`, `version`, `revision`, `split_points`, `dtype`, …), and `reload`; None
                for a model that was there, as it was.
        """
        request = inference_pb.RepositoryModelLoadRequest(model_name=name, parameters=_as_parameters(parameters))
        self._call(
            INFERENCE + "RepositoryModelLoad", request, inference_pb.RepositoryModelLoadResponse, is_patient=True
        )

    def unload_model(self, name: str, parameters: Mapping[str, Parameter] | None = None) -> None:
        """Let the sessions of a model end, unload it, and wait for that.

        Args:
            name: of the model.
            parameters: `version` (else all), and `drain_timeout_s`, how long its sessions may go on.
        """
        request = inference_pb.RepositoryModelUnloadRequest(model_name=name, parameters=_as_parameters(parameters))
        kind = inference_pb.RepositoryModelUnloadResponse
        self._call(INFERENCE + "RepositoryModelUnload", request, kind, is_patient=True)

    def drain(self, grace_s: float | None = None) -> int:
        """Have the server end: it is ready no more, its sessions move or finish, then it stops.

        Args:
            grace_s: how long they may take; None for what the server is configured to.

        Returns:
            How many sessions there were.
        """
        request = control_pb2.DrainRequest(grace_s=grace_s)
        return int(self._call(CONTROL + "Drain", request, control_pb2.DrainResponse).num_sessions)

    def wait_gone(self) -> None:
        """Wait until the connection to the server has ended."""
        is_gone = threading.Event()

        def note(state: grpc.ChannelConnectivity) -> None:
            if state is not grpc.ChannelConnectivity.READY and state is not grpc.ChannelConnectivity.CONNECTING:
                is_gone.set()

        self._channel.subscribe(note)
        is_gone.wait()
        self._channel.unsubscribe(note)

    def _call(self, path: str, request: Message, kind: type[MessageT], *, is_patient: bool = False) -> MessageT:
        invoke: Any = self._channel.unary_unary(
            path, request_serializer=lambda message: message.SerializeToString(), response_deserializer=kind.FromString
        )
        limit_s = None if is_patient else self._timeout_s
        try:
            answer: MessageT = invoke(request, timeout=limit_s, metadata=self._credentials.metadata())
        except grpc.RpcError as error:
            raise _translated(error, self._address, self._timeout_s) from error
        return answer


def _translated(error: Any, address: str, timeout_s: float) -> CommError | ManagerError:
    kind = dict(error.trailing_metadata() or ()).get(KIND_METADATA)
    if kind in _BY_NAME:
        return _BY_NAME[kind](error.details() or "")
    return translate(error, address, timeout_s)


def _as_parameters(values: Mapping[str, Parameter] | None) -> dict[str, inference_pb.ModelRepositoryParameter]:
    return {key: _as_parameter(value) for key, value in (values or {}).items()}


def _as_parameter(value: Parameter) -> inference_pb.ModelRepositoryParameter:
    if isinstance(value, bool):
        return inference_pb.ModelRepositoryParameter(bool_param=value)
    if isinstance(value, int):
        return inference_pb.ModelRepositoryParameter(int64_param=value)
    return inference_pb.ModelRepositoryParameter(string_param=value)


def _model_state(model: control_pb2.ModelDescription) -> ModelState:
    return ModelState(
        name=model.name,
        version=model.version,
        state=model.state,
        reason=model.reason,
        since=model.since_unix_s,
        num_sessions=model.num_sessions,
        progress=model.progress,
    )
