"""Tensors and sessions over gRPC between two Python processes; knows no model."""

from splitlearn_comm.client import AsyncClientSession, AsyncComputeClient, ClientSession, GRPCComputeClient
from splitlearn_comm.codec import TensorCodec
from splitlearn_comm.errors import (
    AddressInUseError,
    CommError,
    DeadlineExceededError,
    FingerprintMismatchError,
    InvalidRequestError,
    MessageTooLargeError,
    RemoteInternalError,
    ResourceExhaustedError,
    SequenceTooLongError,
    ServerUnavailableError,
    SessionNotFoundError,
    StepOrderError,
    UnsupportedOperationError,
)
from splitlearn_comm.function import ComputeFunction, ModelComputeFunction
from splitlearn_comm.host import SessionHost
from splitlearn_comm.messages import (
    Action,
    ComputeCall,
    ComputeResult,
    Crop,
    Forward,
    KVEntries,
    KVEntry,
    Reorder,
    ServiceInfo,
    StartRecording,
)
from splitlearn_comm.server import GRPCComputeServer, GRPCServerConfig, ServerStatistics

__all__ = [
    "Action",
    "AddressInUseError",
    "AsyncClientSession",
    "AsyncComputeClient",
    "ClientSession",
    "CommError",
    "ComputeCall",
    "ComputeFunction",
    "ComputeResult",
    "Crop",
    "DeadlineExceededError",
    "FingerprintMismatchError",
    "Forward",
    "GRPCComputeClient",
    "GRPCComputeServer",
    "GRPCServerConfig",
    "InvalidRequestError",
    "KVEntries",
    "KVEntry",
    "MessageTooLargeError",
    "ModelComputeFunction",
    "RemoteInternalError",
    "Reorder",
    "ResourceExhaustedError",
    "SequenceTooLongError",
    "ServerStatistics",
    "ServerUnavailableError",
    "ServiceInfo",
    "SessionHost",
    "SessionNotFoundError",
    "StartRecording",
    "StepOrderError",
    "TensorCodec",
    "UnsupportedOperationError",
]
