"""Tensors and sessions over gRPC between two Python processes; knows no model."""

from splitlearn_comm.errors import (
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

__all__ = [
    "Action",
    "CommError",
    "ComputeCall",
    "ComputeFunction",
    "ComputeResult",
    "Crop",
    "DeadlineExceededError",
    "FingerprintMismatchError",
    "Forward",
    "InvalidRequestError",
    "KVEntries",
    "KVEntry",
    "MessageTooLargeError",
    "ModelComputeFunction",
    "RemoteInternalError",
    "Reorder",
    "ResourceExhaustedError",
    "SequenceTooLongError",
    "ServerUnavailableError",
    "ServiceInfo",
    "SessionHost",
    "SessionNotFoundError",
    "StartRecording",
    "StepOrderError",
    "UnsupportedOperationError",
]
