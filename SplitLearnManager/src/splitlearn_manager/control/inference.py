"""Open Inference Protocol, version 2, with the extension for model repositories: what is answered."""

from collections.abc import Callable

import torch

from splitlearn_manager._proto.inference import grpc_service_pb2 as pb
from splitlearn_manager.control.models import ControlledModels, ModelRow
from splitlearn_manager.control.orders import load_order, unload_order
from splitlearn_manager.control.surface import Method
from splitlearn_manager.errors import ModelNotFoundError, ModelNotReadyError
from splitlearn_manager.lifecycle import State

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
SERVER_NAME = "splitlearn"
EXTENSIONS = ("model_repository",)
PLATFORM = "splitlearn_trunk"
TENSOR = "hidden_states"
DATATYPES = {torch.float32: "FP32", torch.float16: "FP16", torch.bfloat16: "BF16", torch.float64: "FP64"}
"""How the protocol writes dtypes."""


class InferenceService:
    """Answers the calls of `inference.GRPCInferenceService`.

    Args:
        models: what is served.
        is_serving: whether the server takes calls and does not stop.
        version: of the package.
    """

    def __init__(self, models: ControlledModels, is_serving: Callable[[], bool], version: str) -> None:
        self._models = models
        self._is_serving = is_serving
        self._version = version

    def methods(self) -> tuple[Method, ...]:
        """Return all calls."""

        def method(name: str, request: type, answer: Callable, is_for_operators: bool = False) -> Method:  # type: ignore[type-arg]
            path = f"/{SERVICE}/{name}"
            return Method(path=path, request=request, answer=answer, is_for_operators=is_for_operators)

        return (
            method("ServerLive", pb.ServerLiveRequest, self._live),
            method("ServerReady", pb.ServerReadyRequest, self._ready),
            method("ModelReady", pb.ModelReadyRequest, self._model_ready),
            method("ServerMetadata", pb.ServerMetadataRequest, self._metadata),
            method("ModelMetadata", pb.ModelMetadataRequest, self._model_metadata),
            method("RepositoryIndex", pb.RepositoryIndexRequest, self._index),
            method("RepositoryModelLoad", pb.RepositoryModelLoadRequest, self._load, is_for_operators=True),
            method("RepositoryModelUnload", pb.RepositoryModelUnloadRequest, self._unload, is_for_operators=True),
        )

    async def _live(self, _: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def _ready(self, _: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._is_serving() and any(map(is_ready, self._models.rows())))

    async def _model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        rows = matching(self._models.rows(), request.name, request.version)
        return pb.ModelReadyResponse(ready=self._is_serving() and any(map(is_ready, rows)))

    async def _metadata(self, _: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=self._version, extensions=EXTENSIONS)

    async def _model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        return model_metadata(self._models.rows(), request.name, request.version)

    async def _index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        rows = [row for row in self._models.rows() if not request.ready or is_ready(row)]
        return pb.RepositoryIndexResponse(models=map(index_of, rows))

    async def _load(self, request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        await self._models.load(load_order(request))
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, request: pb.RepositoryModelUnloadRequest) -> pb.RepositoryModelUnloadResponse:
        await self._models.unload(unload_order(request))
        return pb.RepositoryModelUnloadResponse()


def is_ready(row: ModelRow) -> bool:
    """Whether a version of a model takes sessions."""
    return row.state is State.READY


def matching(rows: tuple[ModelRow, ...], name: str, version: str) -> list[ModelRow]:
    """Return the versions of a model; of a named version that alone."""
    return [row for row in rows if row.name == name and version in ("", str(row.version))]


def index_of(row: ModelRow) -> pb.RepositoryIndexResponse.ModelIndex:
    """Return the line of a model in the index."""
    reason = f"{row.told_reason}; {row.progress}" if row.progress else row.told_reason
    return pb.RepositoryIndexResponse.ModelIndex(
        name=row.name, version=str(row.version), state=row.state.name, reason=reason
    )


def model_metadata(rows: tuple[ModelRow, ...], name: str, version: str) -> pb.ModelMetadataResponse:
    """Return what a model takes and gives.

    Raises:
        ModelNotFoundError: nothing is known of it.
        ModelNotReadyError: it is not loaded.
    """
    known = matching(rows, name, version)
    if not known:
        asked = f"{name!r} version {version}" if version else repr(name)
        names = ", ".join(sorted({row.name for row in rows})) or "none"
        raise ModelNotFoundError(f"there is no model {asked}; known are: {names}")
    row = ([row for row in known if is_ready(row)] or known)[-1]
    info = row.info
    if info is None:
        raise ModelNotReadyError(
            f"{name} is {row.state.value} ({row.told_reason}): what it takes is known once it is loaded"
        )
    datatype = "" if info.dtype is None else DATATYPES[info.dtype]
    hidden = pb.ModelMetadataResponse.TensorMetadata(
        name=TENSOR, datatype=datatype, shape=(-1, -1, info.hidden_size or -1)
    )
    versions = [str(row.version) for row in rows if row.name == name and is_ready(row)]
    return pb.ModelMetadataResponse(
        name=name, versions=versions, platform=PLATFORM, inputs=(hidden,), outputs=(hidden,)
    )
